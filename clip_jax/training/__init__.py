"""Training: the sections of a config, optimizers, schedules, the step and the loop."""

from clip_jax.training.experiment import Data, Training, experiment
from clip_jax.training.muon import muon
from clip_jax.training.optim import adamw, scaling_vit_adafactor
from clip_jax.training.schedule_free import schedule_free_adamw
from clip_jax.training.schedules import warmup_constant, warmup_cosine, warmup_rsqrt

# What a saved config may name, see `clip_jax.config`.
PARTS = (
  "Data",
  "Training",
  "adamw",
  "muon",
  "scaling_vit_adafactor",
  "schedule_free_adamw",
  "warmup_constant",
  "warmup_cosine",
  "warmup_rsqrt",
)
__all__ = [
  "Data",
  "Training",
  "adamw",
  "experiment",
  "muon",
  "scaling_vit_adafactor",
  "schedule_free_adamw",
  "warmup_constant",
  "warmup_cosine",
  "warmup_rsqrt",
]
