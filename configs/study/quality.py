"""The best 20 to 100% of a pool, each once and for the same samples: Figures 5 to 7.

  python -m clip_jax.study run --grid=configs/study/quality.py:DATA --out=DIR [--dry-run]

DATA is a folder that python -m clip_jax.prepare wrote of your own pairs, and data/scores.npz
how well their texts fit: python -m clip_jax.score --from=MODEL --source=DATA --out=data/scores.npz
Not run here.
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
  return Grid(
      grids.quality_cuts(make, data="own", pool=grids.SIZES[-1], samples=grids.SAMPLES),
      recipes.COLUMNS)
