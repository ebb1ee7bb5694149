"""Training objectives; each owns the learned scalars and heads that only its loss needs."""

from clip_jax.objectives.base import PairObjective
from clip_jax.objectives.captioner import Captioner
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.distill import Distill
from clip_jax.objectives.flip import flip
from clip_jax.objectives.global_clip import GlobalClip
from clip_jax.objectives.matryoshka import Matryoshka
from clip_jax.objectives.nuclr import Nuclr
from clip_jax.objectives.selected import Selected
from clip_jax.objectives.siglip import Siglip
from clip_jax.objectives.slip import Slip
from clip_jax.objectives.words import Words

# What a saved config may name, see `clip_jax.config`.
PARTS = (
  "Captioner",
  "Clip",
  "Distill",
  "GlobalClip",
  "Matryoshka",
  "Nuclr",
  "Selected",
  "Siglip",
  "Slip",
  "Words",
  "flip",
)
__all__ = [
  "Captioner",
  "Clip",
  "Distill",
  "GlobalClip",
  "Matryoshka",
  "Nuclr",
  "PairObjective",
  "Selected",
  "Siglip",
  "Slip",
  "Words",
  "flip",
]
