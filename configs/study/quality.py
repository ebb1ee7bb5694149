"""Quality cuts that keep 20% to 100% of a pool: Figures 5 to 7.

Each cut is trained for one epoch and for the same number of samples.

  python -m clip_jax.study run --grid=configs/study/quality.py:DATA --out=DIR [--dry-run]

DATA is a folder of your own pairs, written by python -m clip_jax.prepare, and data/scores.npz holds
their image-text similarities, written by

  python -m clip_jax.score --model=MODEL --source=DATA --out=data/scores.npz

The authors have not trained this grid.
"""

from clip_jax.configs import clip as clip_config
from clip_jax.configs.evaluations import study as study_suite

from clip_jax.study import designs, recipes
from clip_jax.study.grid import Grid


def get_grid(data="data/pairs"):
  """Builds the grid on the pairs in the folder `data`."""
  make = recipes.paper(clip_config.get_config(), data, evaluators=study_suite.get_config())
  return Grid(
    designs.quality_cuts(make, data="own", pool=designs.SIZES[-1], samples=designs.SAMPLES),
    recipes.COLUMNS,
  )
