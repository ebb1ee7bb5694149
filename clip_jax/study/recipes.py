"""The configs that grids are made of: one base each, at the paper's scale and at a laptop's."""

from collections.abc import Callable, Mapping, Sequence
import copy
from typing import Any

from ml_collections.config_dict import ConfigDict

from clip_jax.augment.simclr import SimclrColours
from clip_jax.config import call
from clip_jax.data.crops import RandomResizedCrop, Resize
from clip_jax.data.flip import HorizontalFlip
from clip_jax.data.quality import Quality
from clip_jax.data.randaugment import RandAugment
from clip_jax.data.records import ArrayRecord
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.errors import UserError
from clip_jax.evaluators.few_shot import FewShot
from clip_jax.evaluators.labelled import Labelled
from clip_jax.evaluators.linear_probe import LinearProbe
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.zero_shot import ZeroShot
from clip_jax.experiment import Data, Training, experiment
from clip_jax.model import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.flip import flip
from clip_jax.objectives.siglip import Siglip
from clip_jax.objectives.slip import Slip
from clip_jax.optim import adamw
from clip_jax.schedules import warmup_cosine
from clip_jax.towers.convnext import ConvNext
from clip_jax.towers.mixer import MlpMixer
from clip_jax.towers.resnet import BitResnet
from clip_jax.towers.swin import Swin
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit

TOWERS = {
    "ViT-Ti/16": (Vit, dict(size="Ti", patch=16)),
    "ViT-S/16": (Vit, dict(size="S", patch=16)),
    "ViT-B/32": (Vit, dict(size="B", patch=32)),
    "ViT-B/16": (Vit, dict(size="B", patch=16)),
    "ViT-L/16": (Vit, dict(size="L", patch=16)),
    "ResNet-50": (BitResnet, dict(layers=50)),
    "ConvNeXt-T": (ConvNext, dict(size="T")),
    "Swin-T": (Swin, dict(size="T")),
    "Mixer-B/32": (MlpMixer, dict(size="B", patch=32)),
}
# What stands for them at 32 pixels: as small beside each other as those are.
SMALL_TOWERS = {
    "ViT-32x2": (Vit, dict(width=32, depth=2, heads=2, mlp=128, patch=8)),
    "ViT-64x3": (Vit, dict(width=64, depth=3, heads=2, mlp=256, patch=8)),
    "ViT-128x4": (Vit, dict(width=128, depth=4, heads=4, mlp=512, patch=8)),
    "Mixer-64x3": (MlpMixer, dict(width=64, depth=3, patch=8)),
    "ResNet-8": (BitResnet, dict(stages=(1, 1, 1), width=16, block="basic", stem="small",
                                 groups=8, pool="flat")),
}
# Which column of runs.csv is which of the final evaluators' metrics: configs/evaluations/study.py.
_SETS = {"A": "imagenet_a", "R": "imagenet_r", "Sketch": "imagenet_sketch", "V2": "imagenet_v2",
         "ReaL": "imagenet_real", "ObjectNet": "objectnet"}
COLUMNS = {
    "zero_shot": "imagenet/top1", **{f"zero_shot_{n}": f"{s}/top1" for n, s in _SETS.items()},
    "shot5": "few_shot/5_shot_top1", "shot10": "few_shot/10_shot_top1",
    "linear_probe": "probe/top1",
    **{f"linear_probe_{n}": f"probe/{s}/top1" for n, s in _SETS.items()},
    "i2t_r1": "coco/image_to_text_r1", "t2i_r1": "coco/text_to_image_r1"}
SMALL_COLUMNS = {
    "zero_shot": "zero_shot/top1", "i2t_r1": "retrieval/image_to_text_r1",
    "t2i_r1": "retrieval/text_to_image_r1", "i2t_r10": "retrieval/image_to_text_r10",
    "t2i_r10": "retrieval/text_to_image_r10", "linear_probe": "probe/top1",
    "shot5": "few_shot/5_shot_top1", "shot10": "few_shot/10_shot_top1"}


def seen(method: str, aug: str, *, size: int,
         weakest: float = 0.08) -> tuple[dict[str, ConfigDict], dict[str, ConfigDict]]:
  """What the image tower sees in training: views made on the host, and what the device adds.

  Args:
    size: of the images in pixels.
    weakest: least share of the image's area that a crop of an augmentation leaves.

  Raises:
    UserError: no such augmentation.
  """
  cropped = lambda least, *chain: call(
      ImageView, crop=call(RandomResizedCrop, size=size, scale=(least, 1.0)), augment=chain)
  images = {
      "none": lambda: call(ImageView, crop=call(Resize, size=size, shrink=True)),
      "crop&flip": lambda: cropped(weakest, call(HorizontalFlip)),
      "RandAugment": lambda: cropped(weakest, call(HorizontalFlip), call(RandAugment)),
      "stacked RandAugment": lambda: cropped(weakest, call(RandAugment))}
  if aug not in images:
    raise UserError(f"There is no augmentation {aug!r}; there are {', '.join(images)}.")
  if method == "SLIP":
    return ({"image": cropped(max(weakest, 0.5)), "view_a": cropped(weakest),
             "view_b": cropped(weakest)},
            {"view_a": call(SimclrColours), "view_b": call(SimclrColours)})
  return {"image": images[aug]()}, (
      {"image": call(SimclrColours)} if aug == "stacked RandAugment" else {})


def objective(method: str, *, block: int | None = None, temperature: float = 0.07,
              **head: Any) -> ConfigDict:
  """What a strategy minimises; `head` is of SLIP's.

  Raises:
    UserError: no such strategy.
  """
  own = dict(block=block, temperature=temperature)
  makers = {
      "CLIP": lambda: call(Clip, **own), "CLIP+DA": lambda: call(Clip, **own),
      "CLIPA": lambda: call(Clip, **own), "FLIP": lambda: call(flip, **own),
      "SigLIP": lambda: call(Siglip, block=block),
      "SLIP": lambda: call(Slip, pairs=call(Clip, **own), block=block, **head),
  }
  if method not in makers:
    raise UserError(f"There is no strategy {method!r}; there are {', '.join(makers)}.")
  return makers[method]()


def tower(towers: dict[str, tuple], arch: str, **options: Any) -> ConfigDict:
  """The call of a named image tower."""
  if arch not in towers:
    raise UserError(f"There is no architecture {arch!r}; there are {', '.join(towers)}.")
  made, own = towers[arch]
  return call(made, **own, **options)


def paper(base: ConfigDict, data: str, *, evaluators: Mapping[str, ConfigDict] | None = None,
          scores: str = "data/scores.npz") -> Callable[..., ConfigDict]:
  """Makes the paper's configs out of its plain one, `configs/clip.py`.

  FLIP drops half of the patches and doubles the batch, as in the paper; strengths of augmentations,
  which it does not state, are those of `configs/clip_augment.py`.

  Args:
    base: config of ViT-B/32 and plain CLIP.
    data: folder that `python -m clip_jax.prepare` wrote; local or gs://.
    evaluators: what is measured at the end of each run; nothing by default.
    scores: what `python -m clip_jax.score` wrote of it, for the quality cuts.

  Source: Li, Xie, Cubuk 2024, section 3.
  """
  pixels = base.model.image.image_size

  def make(*, arch="ViT-B/32", method="CLIP", aug="none", size, quality=100, samples, seed=0):
    config = copy.deepcopy(base)
    config.data.source = call(ArrayRecord, path=data)
    if quality < 100:
      # The cut is of the whole pool, which `size` says the size of.
      config.data.source = call(Quality, source=config.data.source, scores=scores,
                                keep=f"top {quality:g}%")
    config.data.size = size if quality == 100 else None
    config.data.views.images, config.augment = map(ConfigDict, seen(method, aug, size=pixels))
    config.data.batch_size *= 2 if method == "FLIP" else 1
    config.model.image = tower(TOWERS, arch, remat=base.model.image.remat, image_size=pixels)
    config.objective = objective(method, block=base.objective.block)
    config.train.update(samples=samples, keep=1)
    config.final_evaluators = ConfigDict(evaluators or {})
    config.seed = seed
    return config

  return make


def small(source: Callable[..., ConfigDict], *, train: ConfigDict, test: ConfigDict,
          classes: Sequence[str], tokenizer: str = "openclipart-1k", length: int = 24,
          image_size: int = 32, batch_size: int = 128) -> Callable[..., ConfigDict]:
  """Makes configs that a laptop trains in a minute: 32 pixels, towers of `SMALL_TOWERS`.

  Args:
    source: quality in percent -> the records. They are all of the pool at 100, with the noise that
      it has; below, the clean part of it.
    train: labelled records that the linear probe and few-shot learn from.
    test, classes: what is asked at the end.
    length, image_size: tokens and pixels; CLIPA has half of the tokens and three pixels of four.
  """

  def make(*, arch="ViT-64x3", method="CLIP", aug="none", size, quality=100, samples, seed=0):
    reduced = method == "CLIPA"
    pixels, tokens = (image_size * 3 // 4, length // 2) if reduced else (image_size, length)
    images, augment = seen(method, aug, size=pixels, weakest=0.4)
    head: dict[str, Any] = dict(hidden=256, outputs=64, dtype="float32") if method == "SLIP" else {}
    return experiment(
        data=call(
            Data, source=source(quality),
            views=call(Views, images=images, tokenizer=call(
                SentencePiece, model=tokenizer, length=tokens, eos=False),
                       shorten="block" if reduced else "first"),
            batch_size=batch_size, size=round(size * quality / 100), threads=1),
        model=call(
            TwoTowers,
            image=tower(SMALL_TOWERS, arch, image_size=pixels, dtype="float32"),
            text=call(TextTransformer, width=64, depth=0, vocabulary=1024, length=tokens,
                      pool="mean", dtype="float32"),
            embed=64),
        augment=augment, objective=objective(method, temperature=0.1, **head),
        optimizer=call(adamw, learning_rate=4e-3, schedule=call(warmup_cosine, warmup=0.1),
                       weight_decay=0.3, clip=1.0),
        train=call(Training, samples=samples, log_every=20, save_every=100, keep=1),
        final_evaluators={
            "retrieval": call(Retrieval, source=test),
            "zero_shot": call(ZeroShot, source=test, classes=tuple(classes)),
            "few_shot": call(FewShot, train=train, test=test, shots=(5, 10),
                             classes=tuple(classes)),
            "probe": call(LinearProbe, train=call(Labelled, source=train, classes=tuple(classes)),
                          test=call(Labelled, source=test, classes=tuple(classes))),
        },
        seed=seed)

  return make
