"""Five ViTs at eleven data sizes: Figures 8 to 11, 21 and 22.

Each size is trained for one epoch and for the same number of samples.

  python -m clip_jax.study run --grid=configs/study/vits.py:DATA --out=DIR [--dry-run]

DATA is a folder of your own pairs, written by python -m clip_jax.prepare. Each run ends with the
evaluations of configs/evaluations/study.py, whose header lists the TFDS data sets to prepare. The
authors have not trained this grid.
"""

from pathlib import Path
import runpy

from clip_jax.study import grids, recipes
from clip_jax.study.grid import Grid

CONFIGS = Path(__file__).parents[1]
BASE = runpy.run_path(str(CONFIGS / "clip.py"))["get_config"]
SUITE = runpy.run_path(str(CONFIGS / "evaluations" / "study.py"))["get_config"]


def get_grid(data="data/pairs"):
  """Builds the grid on the pairs in the folder `data`."""
  make = recipes.paper(BASE(), data, evaluators=SUITE())
  return Grid(grids.at_all_sizes(make, data="own", archs=grids.VITS), recipes.COLUMNS)
