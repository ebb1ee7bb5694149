"""Five architectures at eleven data sizes: Figures 12 to 15 and 23 to 25.

Each size is trained for one epoch and for the same number of samples.

  python -m clip_jax.study run --grid=configs/study/architectures.py:DATA --out=DIR [--dry-run]

DATA is a folder of your own pairs, written by python -m clip_jax.prepare. Each run ends with the
evaluations of configs/evaluations/study.py, whose header lists the TFDS data sets to prepare. The
authors have not trained this grid.
"""

from clip_jax.configs import clip as clip_config
from clip_jax.configs.evaluations import study as study_suite

from clip_jax.study import designs, recipes
from clip_jax.study.grid import Grid


def get_grid(data="data/pairs"):
  """Builds the grid on the pairs in the folder `data`."""
  make = recipes.paper(clip_config.get_config(), data, evaluators=study_suite.get_config())
  return Grid(
    designs.at_paper_sizes(make, data="own", archs=designs.ARCHITECTURES), recipes.COLUMNS
  )
