"""Muon: CLIP whose matrices are trained with orthogonalised momentum.

  python -m clip_jax.train --config=configs/muon.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The authors have not run this config.

Source: Jordan et al. 2024 (Muon): momentum 0.95, five Newton-Schulz iterations, AdamW for vectors
and embeddings; Liu et al. 2025: updates with a root mean square of 0.2, so that the learning rate
and the weight decay are those of AdamW.
Not specified: values for CLIP. Here the learning rate and the strength of the decay are those of
configs/clip.py, as is the rest.
Expect: no number is published for these towers.
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.training.muon import muon


def get_config():
  """Builds the config."""
  config = clip_config.get_config()
  config.optimizer = call(
    muon,
    learning_rate=1e-3,
    weight_decay=0.1,
    grad_clip_norm=1.0,
    schedule=config.optimizer.schedule,
  )
  return config
