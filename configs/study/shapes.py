"""Data x strategy x quality x architecture on synthetic scenes, three seeds.

  python -m clip_jax.study run --grid=configs/study/shapes.py --out=DIR --jobs=2

The pool is 25,600 scenes. The noisy one has two captions in five of another scene, and its cut at
60% is the pairs that are right.
"""

from clip_jax.config import call
from clip_jax.data.sources.shapes import Shapes
from clip_jax.study import grids, recipes
from clip_jax.study.grid import Grid

POOL, NOISE = 25_600, 0.4
SIZES = (1_600, 6_400, 25_600)


def scenes(noise):
  """Quality -> the scenes: all with their noise, or those that are right."""
  return lambda quality: call(Shapes, size=POOL, image_size=32, objects=2,
                              noise=noise if quality == 100 else 0.0)


def get_grid(seeds="3"):
  """The runs, for so many seeds."""
  options = dict(test=call(Shapes, size=1000, image_size=32, objects=2, seed=1),
                 classes=Shapes.classes)
  clean = recipes.small(scenes(0.0), **options)
  noisy = recipes.small(scenes(NOISE), **options)
  seeds = range(int(seeds))
  runs = (
      grids.by_size(clean, data="shapes", sizes=SIZES, samples=None, seeds=seeds,
                    archs=("ViT-64x3", "ResNet-8"))
      + grids.by_size(clean, data="shapes", sizes=SIZES[:2], samples=POOL, seeds=seeds,
                      archs=("ViT-64x3",), methods=("CLIP", "CLIP+DA", "FLIP"))
      + grids.quality_cuts(noisy, data="noisy shapes", pool=POOL, samples=POOL, cuts=(60, 100),
                           arch="ViT-64x3", seeds=seeds))
  return Grid(runs, recipes.SMALL_COLUMNS)
