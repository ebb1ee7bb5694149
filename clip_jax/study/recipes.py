"""The configs that grids are made of: one base each, at the paper's scale and at a laptop's."""

from collections.abc import Callable, Sequence

from ml_collections.config_dict import ConfigDict

from clip_jax.config import call
from clip_jax.data.colour import ColourJitter
from clip_jax.data.crops import RandomResizedCrop, Resize
from clip_jax.data.flip import HorizontalFlip
from clip_jax.data.quality import Quality
from clip_jax.data.randaugment import RandAugment
from clip_jax.data.records import ArrayRecord
from clip_jax.data.sources.tfds import Tfds
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.errors import UserError
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.zero_shot import ZeroShot
from clip_jax.experiment import Data, Training, experiment
from clip_jax.model import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.optim import adamw, scaling_vit_adafactor
from clip_jax.schedules import warmup_cosine
from clip_jax.towers.resnet import BitResnet
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit

TOWERS = {
    "ViT-Ti/16": (Vit, dict(size="Ti", patch=16)),
    "ViT-S/16": (Vit, dict(size="S", patch=16)),
    "ViT-B/32": (Vit, dict(size="B", patch=32)),
    "ViT-B/16": (Vit, dict(size="B", patch=16)),
    "ViT-L/16": (Vit, dict(size="L", patch=16)),
    "ResNet-50": (BitResnet, dict(layers=50)),
}
# What stands for them at 32 pixels: as small beside each other as those are.
SMALL_TOWERS = {
    "ViT-16x2": (Vit, dict(width=32, depth=2, heads=2, mlp=128, patch=8)),
    "ViT-64x3": (Vit, dict(width=64, depth=3, heads=2, mlp=256, patch=8)),
    "ViT-128x4": (Vit, dict(width=128, depth=4, heads=4, mlp=512, patch=8)),
    "ResNet-8": (BitResnet, dict(stages=(1, 1, 1), width=16, block="basic", stem="small",
                                 groups=8, pool="flat")),
}
# Which column of runs.csv is which of the final evaluators' metrics.
COLUMNS = {"zero_shot": "imagenet/top1", "i2t_r1": "coco/image_to_text_r1",
           "t2i_r1": "coco/text_to_image_r1"}
SMALL_COLUMNS = {
    "zero_shot": "zero_shot/top1", "i2t_r1": "retrieval/image_to_text_r1",
    "t2i_r1": "retrieval/text_to_image_r1", "i2t_r10": "retrieval/image_to_text_r10",
    "t2i_r10": "retrieval/text_to_image_r10"}


def views(method: str, aug: str, *, size: int, weakest: float = 0.08) -> dict[str, ConfigDict]:
  """What the image towers see; in training, by the names of the batch's entries.

  Args:
    weakest: least share of the image's area that a crop leaves, in every augmentation.

  Raises:
    UserError: no such augmentation.
  """
  crop = call(RandomResizedCrop, size=size, scale=(weakest, 1.0))
  chains = {
      "crop&flip": (call(HorizontalFlip),),
      "RandAugment": (call(HorizontalFlip), call(RandAugment)),
      # SimCLR's colours after RandAugment, in the order of Khosla et al. 2020's supplement.
      "stacked RandAugment": (call(HorizontalFlip), call(RandAugment), call(ColourJitter)),
  }
  if aug != "none" and aug not in chains:
    raise UserError(f"There is no augmentation {aug!r}; there are none, {', '.join(chains)}.")
  plain = call(ImageView, crop=call(Resize, size=size, shrink=True))
  return {"image": plain if aug == "none" else call(ImageView, crop=crop, augment=chains[aug])}


def objective(method: str, **scale) -> ConfigDict:
  """What a strategy minimises."""
  makers = {
      "CLIP": lambda: call(Clip, **scale), "CLIP+DA": lambda: call(Clip, **scale),
      "FLIP": lambda: call(Clip, keep_patches=0.5, **scale),
  }
  if method not in makers:
    raise UserError(f"There is no strategy {method!r}; there are {', '.join(makers)}.")
  return makers[method]()


def tower(towers: dict[str, tuple], arch: str, **options) -> ConfigDict:
  """The call of a named image tower."""
  if arch not in towers:
    raise UserError(f"There is no architecture {arch!r}; there are {', '.join(towers)}.")
  made, own = towers[arch]
  return call(made, **own, **options)


def paper(data: str, *, scores: str = "scores.npz", tokenizer: str = "openclipart-4k",
          batch_size: int = 16_384) -> Callable[..., ConfigDict]:
  """Makes the paper's configs: ViT-B text tower, 16 tokens, 224 pixels, Adafactor, batch 16k.

  What the paper leaves open is chosen here: a warm-up of 5% of the run, gradients cut to norm 1,
  temperature from 0.07, an embedding of 512, and the strengths of augmentations. FLIP drops half of
  the patches and doubles the batch, as in the paper.

  Args:
    data: folder that `python -m clip_jax.prepare` wrote; local or gs://.
    scores: what `python -m clip_jax.score` wrote of it, for the quality cuts.
    tokenizer: a SentencePiece model; the paper's has 32,000 pieces (`prepare` trains one). The one
      that is shipped is for a first try.
    batch_size: of all strategies but FLIP.

  Source: Li, Xie, Cubuk 2024, section 3.
  """

  def make(*, arch="ViT-B/32", method="CLIP", aug="none", size, quality=100, samples, seed=0):
    source = call(ArrayRecord, path=data)
    length = 16
    if quality < 100:
      # The cut is of the whole pool, which `size` says the size of.
      source = call(Quality, source=source, scores=scores, keep=f"top {quality:g}%")
    return experiment(
        data=call(
            Data, source=source,
            views=call(Views, images=views(method, aug, size=224),
                       tokenizer=call(SentencePiece, model=tokenizer, length=length,
                                      sticky_eos=True)),
            batch_size=batch_size * (2 if method == "FLIP" else 1),
            size=size if quality == 100 else None, threads=32),
        model=call(TwoTowers, image=tower(TOWERS, arch, remat="full"),
                   text=call(TextTransformer, vocabulary=32_000, length=length, remat="full"),
                   embed=512),
        objective=objective(method, block=1024),
        optimizer=call(scaling_vit_adafactor, learning_rate=1e-3,
                       schedule=call(warmup_cosine, warmup=0.05), weight_decay=1e-4, clip=1.0),
        train=call(Training, samples=samples, save_every=1000, keep=1),
        final_evaluators={
            "imagenet": call(ZeroShot, source=call(
                Tfds, name="imagenet2012", split="validation", text=None, label="label"),
                             classes="imagenet", templates="openai_80"),
            "coco": call(Retrieval, source=call(
                Tfds, name="coco_captions", split="test", text="captions/text")),
        },
        seed=seed)

  return make


def small(source: Callable[..., ConfigDict], *, test: ConfigDict, classes: Sequence[str],
          tokenizer: str = "openclipart-1k", length: int = 24, image_size: int = 32,
          batch_size: int = 128) -> Callable[..., ConfigDict]:
  """Makes configs that a laptop trains in a minute: 32 pixels, towers of `SMALL_TOWERS`.

  Args:
    source: quality in percent -> the records. They are all of the pool at 100, with the noise that
      it has; below, the clean part of it.
    test, classes: what is asked at the end.
  """

  def make(*, arch="ViT-64x3", method="CLIP", aug="none", size, quality=100, samples, seed=0):
    return experiment(
        data=call(
            Data, source=source(quality),
            views=call(Views, images=views(method, aug, size=image_size, weakest=0.4),
                       tokenizer=call(SentencePiece, model=tokenizer, length=length, eos=False)),
            batch_size=batch_size, size=round(size * quality / 100), threads=1),
        model=call(
            TwoTowers,
            image=tower(SMALL_TOWERS, arch, image_size=image_size, dtype="float32"),
            text=call(TextTransformer, width=64, depth=0, vocabulary=1024, length=length,
                      pool="mean", dtype="float32"),
            embed=64),
        objective=objective(method, temperature=0.1),
        optimizer=call(adamw, learning_rate=4e-3, schedule=call(warmup_cosine, warmup=0.1),
                       weight_decay=0.3, clip=1.0),
        train=call(Training, samples=samples, log_every=20, save_every=100, keep=1),
        final_evaluators={
            "retrieval": call(Retrieval, source=test),
            "zero_shot": call(ZeroShot, source=test, classes=tuple(classes)),
        },
        seed=seed)

  return make
