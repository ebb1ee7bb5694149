"""The models of "Scaling (Down) CLIP" on synthetic scenes, for benchmarks and planning only.

  python -m clip_jax.bench step --config=configs/benchmark.py:B/16 --config.data.batch_size=1024
  python -m clip_jax.plan --config=configs/benchmark.py:B/16 --topology=v5e:16x16

The argument is a ViT, "Ti/16" to "L/16"; or one of the study's other architectures, "resnet50",
"convnext-T", "swin-T" or "mixer-B/32"; or "slip-B/16", SLIP with a ViT. For FLIP, set
--config.objective.keep_patches=0.5. The scenes, rendered on the fly, replace the study's data,
which is private; "B/32@DIR" reads the shards that `prepare` wrote to DIR instead.
launch/measure.sh runs all benchmarks.

Source: Li, Xie, Cubuk 2024, sec. 3: images of 224 px, context length 16, a vocabulary of 32,000, a
text tower of size B, batch size 16,384, 3.4 billion samples.
"""

from clip_jax.config import call
from clip_jax.data.augment.simclr import SimclrColors
from clip_jax.data.crops import RandomResizedCrop, Resize
from clip_jax.data.records import ArrayRecord
from clip_jax.data.sources.shapes import Shapes
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.errors import UserError
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.slip import Slip
from clip_jax.towers.convnext import ConvNext
from clip_jax.towers.mixer import MlpMixer
from clip_jax.towers.resnet import BitResnet
from clip_jax.towers.sizes import SIZES
from clip_jax.towers.swin import Swin
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit
from clip_jax.training.experiment import Data, Training, experiment
from clip_jax.training.optim import scaling_vit_adafactor
from clip_jax.training.schedules import warmup_cosine

OTHERS = {
  "resnet50": call(BitResnet, layers=50),
  "convnext-T": call(ConvNext, size="T"),
  "swin-T": call(Swin, size="T"),
  "mixer-B/32": call(MlpMixer, size="B", patch=32),
}


def get_config(model="B/16"):
  """Builds the config of one model."""
  model, _, records = model.partition("@")
  slip = model.startswith("slip-")
  size, _, patch = model.removeprefix("slip-").partition("/")
  if model not in OTHERS and not (size in SIZES and patch.isdigit()):
    raise UserError(
      f"configs/benchmark.py:{model} does not exist; choose from B/16, "
      f"{', '.join(OTHERS)}, slip-B/16, B/32@DIR with the shards in DIR, or ViTs of "
      "other sizes and patch sizes."
    )
  image = OTHERS[model] if model in OTHERS else call(Vit, size=size, patch=int(patch))
  crops = {"image": call(Resize, size=224)}
  if slip:
    crops |= {view: call(RandomResizedCrop, size=224) for view in ("view_a", "view_b")}
  return experiment(
    data=call(
      Data,
      source=call(ArrayRecord, path=records) if records else call(Shapes, size=3_400_000_000),
      views=call(
        Views,
        images={name: call(ImageView, crop=c) for name, c in crops.items()},
        tokenizer=call(SentencePiece, context_length=16),
      ),
      batch_size=16_384,
    ),
    model=call(
      TwoTowers,
      image=image,
      text=call(TextTransformer, size="B", vocab_size=32_000, context_length=16),
    ),
    objective=call(Slip, pairs=call(Clip)) if slip else call(Clip),
    augment={"view_a": call(SimclrColors), "view_b": call(SimclrColors)} if slip else None,
    optimizer=call(
      scaling_vit_adafactor,
      learning_rate=1e-3,
      schedule=call(warmup_cosine, warmup=10_000),
      weight_decay=1e-4,
    ),
    train=call(Training, samples="3.4B"),
  )
