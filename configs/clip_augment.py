"""CLIP with data augmentation: configs/clip.py with the image of each pair augmented.

  python -m clip_jax.train --config=configs/clip_augment.py:stacked --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The argument is crop_flip, randaugment or stacked. "stacked" is SimCLR's augmentation with
RandAugment before the colour distortion: cropping and RandAugment run on the host; colour
distortion, blur and horizontal flip run on the device. The authors have not run this config.

Source: Li, Xie, Cubuk 2024, which compares the three; Khosla et al. 2020, supplement, for the order
of "stacked".
Not specified there, chosen here: the scale of the crops (0.08 to 1, as in SimCLR), RandAugment's
parameters (2 operations at magnitude 9, as in its paper for ImageNet), the strengths of the color
distortion (as in SLIP), and what is not specified for configs/clip.py.
Expect: gains with few pairs that are seen often, and none from 400 million pairs on. Zero-shot
accuracy on ImageNet after 30 epochs on 10, 25, 50 and 100 million pairs: without augmentation 14.5,
30.2, 42.5, 52.2%; crop_flip 21.1, 34.6, 49.6, 55.7; randaugment 23.6, 39.9, 51.0, 57.0; stacked
24.0, 40.9, 51.2, 57.2 (digitised from its fig. 1). If every pair is seen once, augmentation lowers
the accuracy.
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.data.augment.horizontal_flip import HorizontalFlip
from clip_jax.data.augment.randaugment import RandAugment
from clip_jax.data.augment.simclr import SimclrColors
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.views import ImageView
from clip_jax.errors import UserError

HOST = {
  "crop_flip": (call(HorizontalFlip),),
  "randaugment": (call(HorizontalFlip), call(RandAugment)),
  "stacked": (call(RandAugment),),
}


def get_config(kind="stacked"):
  """Builds the config with one of the three augmentations."""
  if kind not in HOST:
    raise UserError(
      f"configs/clip_augment.py:{kind} does not exist; choose from {', '.join(HOST)}."
    )
  config = clip_config.get_config()
  size = config.model.image.image_size
  config.data.views.images.image = call(
    ImageView, crop=call(RandomResizedCrop, size=size, scale=(0.08, 1.0)), augment=HOST[kind]
  )
  if kind == "stacked":
    config.augment = {"image": call(SimclrColors)}
  return config
