"""Training: the sections of a config, optimizers, schedules, the step and the loop."""

from clip_jax.training.experiment import Data, Training, experiment
from clip_jax.training.optim import adamw, scaling_vit_adafactor
from clip_jax.training.schedules import warmup_constant, warmup_cosine, warmup_rsqrt

# What a saved config may name, see `clip_jax.config`.
PARTS = (
  "Data",
  "Training",
  "adamw",
  "scaling_vit_adafactor",
  "warmup_constant",
  "warmup_cosine",
  "warmup_rsqrt",
)
__all__ = [
  "Data",
  "Training",
  "adamw",
  "experiment",
  "scaling_vit_adafactor",
  "warmup_constant",
  "warmup_cosine",
  "warmup_rsqrt",
]
