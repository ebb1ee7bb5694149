"""Two trivial runs as a grid."""

from clip_jax.study.grid import Grid, Run, with_changes
from faults.trivial_run import get_config


def get_grid():
  factors = dict(data="d", protocol="epochs", arch="A", method="CLIP", aug="none", quality=100.0)
  return Grid(
    [Run(f"run{seed}", with_changes(get_config(), seed=seed), factors) for seed in range(2)],
    {"i2t_r10": "test/image_to_text_r10"},
  )
