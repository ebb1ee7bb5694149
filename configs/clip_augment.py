"""CLIP with data augmentation: configs/clip.py, with the image that the loss sees augmented.

  python -m clip_jax.train --config=configs/clip_augment.py:stacked --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The argument is one of crop_flip, randaugment, stacked. The last is SimCLR's augmentation with
RandAugment before the colours: crop and RandAugment on the host, colours, blur and mirror on the
device. Not run here.

From Li, Xie, Cubuk 2024, which compares the three; the order of the stack from Khosla et
al. 2020, supplement.
Left open there, chosen here: the scale of the crops (SimCLR's 0.08 to 1), RandAugment's numbers (2
operations at magnitude 9, its paper's for ImageNet), strengths of the colours (SLIP's); and what
configs/clip.py leaves open.
Expect: gains where pairs are few and seen often, and none from 400 million pairs on. At 10, 25, 50
and 100 million pairs, 30 epochs, ImageNet zero-shot: not augmented 14.5, 30.2, 42.5, 52.2%;
crop_flip 21.1, 34.6, 49.6, 55.7; randaugment 23.6, 39.9, 51.0, 57.0; stacked 24.0, 40.9, 51.2, 57.2
(its fig. 1, digitised). With every pair seen once it does harm.
"""

from pathlib import Path
import runpy

from clip_jax.augment.simclr import SimclrColours
from clip_jax.config import call
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.flip import HorizontalFlip
from clip_jax.data.randaugment import RandAugment
from clip_jax.data.views import ImageView
from clip_jax.errors import UserError

BASE = runpy.run_path(str(Path(__file__).with_name("clip.py")))  # From wherever it is started.
HOST = {"crop_flip": (call(HorizontalFlip),),
        "randaugment": (call(HorizontalFlip), call(RandAugment)),
        "stacked": (call(RandAugment),)}


def get_config(kind="stacked"):
  """The config of a run with one of the three."""
  if kind not in HOST:
    raise UserError(f"configs/clip_augment.py:{kind} does not exist; there are {', '.join(HOST)}.")
  config = BASE["get_config"]()
  size = config.model.image.image_size
  config.data.views.images.image = call(
      ImageView, crop=call(RandomResizedCrop, size=size, scale=(0.08, 1.0)), augment=HOST[kind])
  if kind == "stacked":
    config.augment = {"image": call(SimclrColours)}
  return config
