"""Data x strategy x quality x architecture on synthetic scenes; the argument is a number of seeds.

  python -m clip_jax.study run --grid=configs/study/shapes.py --out=DIR --jobs=2

The pool is 25,600 scenes of one or two objects. The noisy one has two captions in five of another
scene; its cut at 60% is the pairs that are right, as if noise were known.
"""

from clip_jax.config import call
from clip_jax.data.sources.shapes import Shapes
from clip_jax.study import grids, recipes
from clip_jax.study.grid import Grid

POOL, NOISE = 25_600, 0.4
SIZES = (1_600, 6_400, POOL)
SCENES = dict(image_size=32, objects=2)


def scenes(noise):
  """Quality in percent -> the scenes: all with their noise, or those that are right."""
  return lambda quality: call(Shapes, size=POOL, noise=noise if quality == 100 else 0.0, **SCENES)


def get_grid(seeds="3"):
  """The runs."""
  seeds, small = range(int(seeds)), lambda noise: recipes.small(
      scenes(noise), test=call(Shapes, size=1000, seed=1, **SCENES), classes=Shapes.classes)
  clean, data = small(0.0), dict(data="shapes", seeds=seeds)
  return Grid(
      grids.by_size(clean, sizes=SIZES, samples=None, **data,
                    archs=("ViT-32x2", "ViT-64x3", "ViT-128x4", "ResNet-8"))
      + grids.by_size(clean, sizes=SIZES[-1:], samples=None, archs=("ViT-64x3",),
                      methods=grids.METHODS[1:], **data)
      + grids.by_size(clean, sizes=SIZES[:-1], samples=POOL, archs=("ViT-64x3",),
                      methods=grids.METHODS, **data)
      + grids.sizes_by_epochs(clean, sizes=SIZES[:1], epochs=(8,), arch="ViT-64x3", **data)
      + grids.quality_cuts(small(NOISE), data="noisy shapes", pool=POOL, samples=POOL,
                           cuts=(60, 100), arch="ViT-64x3", seeds=seeds), recipes.SMALL_COLUMNS)
