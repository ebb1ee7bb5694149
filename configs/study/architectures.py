"""Five architectures at eleven sizes, once and for the same samples: Figures 12 to 15, 23 to 25.

  python -m clip_jax.study run --grid=configs/study/architectures.py:DATA --out=DIR [--dry-run]

DATA is a folder that python -m clip_jax.prepare wrote of your own pairs. Each run ends with all of
configs/evaluations/study.py, whose header says which sets of TFDS that takes. Not run here.
"""

from pathlib import Path
import runpy

from clip_jax.study import grids, recipes
from clip_jax.study.grid import Grid

CONFIGS = Path(__file__).parents[1]
BASE = runpy.run_path(str(CONFIGS / "clip.py"))["get_config"]
SUITE = runpy.run_path(str(CONFIGS / "evaluations" / "study.py"))["get_config"]


def get_grid(data="data/pairs"):
  """The runs."""
  make = recipes.paper(BASE(), data, evaluators=SUITE())
  return Grid(grids.at_all_sizes(make, data="own", archs=grids.ARCHITECTURES), recipes.COLUMNS)
