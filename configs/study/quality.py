"""Quality cuts that keep 20% to 100% of a pool: Figures 5 to 7.

Each cut is trained for one epoch and for the same number of samples.

  python -m clip_jax.study run --grid=configs/study/quality.py:DATA --out=DIR [--dry-run]

DATA is a folder of your own pairs, written by python -m clip_jax.prepare, and data/scores.npz holds
their image-text similarities, written by

  python -m clip_jax.score --from=MODEL --source=DATA --out=data/scores.npz

The authors have not trained this grid.
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
  return Grid(
      grids.quality_cuts(make, data="own", pool=grids.SIZES[-1], samples=grids.SAMPLES),
      recipes.COLUMNS)
