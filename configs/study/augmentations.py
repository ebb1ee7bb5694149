"""Three augmentations and none at four small sizes, 30 epochs: Figure 1b.

  python -m clip_jax.study run --grid=configs/study/augmentations.py:DATA --out=DIR [--dry-run]

DATA is a folder that python -m clip_jax.prepare wrote of your own pairs. Not run here.
"""

from pathlib import Path
import runpy

from clip_jax.study import grids, recipes
from clip_jax.study.grid import Grid

BASE = runpy.run_path(str(Path(__file__).parents[1] / "clip.py"))["get_config"]


def get_grid(data="data/pairs"):
  """The runs."""
  make = recipes.paper(BASE(), data)
  return Grid(grids.augmentations(make, data="own", sizes=grids.SIZES[:4], epochs=30),
              recipes.COLUMNS)
