"""Towers: images or texts to features."""

from clip_jax.towers.bag_of_tokens import BagOfTokens
from clip_jax.towers.clip_resnet import ClipResnet
from clip_jax.towers.concat import ConcatTowers
from clip_jax.towers.convnext import ConvNext
from clip_jax.towers.hog import Hog
from clip_jax.towers.mixer import MlpMixer
from clip_jax.towers.resnet import BitResnet
from clip_jax.towers.swin import Swin
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit
from clip_jax.towers.vitamin import Vitamin

# What a saved config may name, see `clip_jax.config`.
PARTS = (
  "BagOfTokens",
  "BitResnet",
  "ClipResnet",
  "ConcatTowers",
  "ConvNext",
  "Hog",
  "MlpMixer",
  "Swin",
  "TextTransformer",
  "Vit",
  "Vitamin",
)
__all__ = [
  "BagOfTokens",
  "BitResnet",
  "ClipResnet",
  "ConcatTowers",
  "ConvNext",
  "Hog",
  "MlpMixer",
  "Swin",
  "TextTransformer",
  "Vit",
  "Vitamin",
]
