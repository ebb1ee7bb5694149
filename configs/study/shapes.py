"""Data size, strategy, quality and architecture on synthetic scenes.

  python -m clip_jax.study run --grid=configs/study/shapes.py --out=DIR --jobs=2

The grid's argument is the number of seeds, 3 by default. The pool has 25,600 scenes of one or two
objects; the runs on data size go up to four times as many. In the noisy pool, 40% of the scenes
have the caption of another scene, and its cuts are those of a perfect score: up to 60% all captions
are correct, at 80% a quarter is wrong.
"""

from clip_jax.config import call
from clip_jax.data.sources.shapes import Shapes
from clip_jax.study import designs, recipes
from clip_jax.study.grid import Grid

POOL, NOISE = 25_600, 0.4
SIZES = (1_600, 6_400, POOL, 4 * POOL)
SCENES = dict(image_size=32, objects=2)


def scenes(noise):
  """Returns the source of the best scenes for a quality in percent, with the remaining noise."""
  return lambda quality: call(
    Shapes, size=SIZES[-1], noise=max(0.0, 1 - (1 - noise) * 100 / quality), **SCENES
  )


def get_grid(seeds="3"):
  """Builds the grid, with each kind of run once per seed."""
  seeds, small = (
    range(int(seeds)),
    lambda noise: recipes.small(
      scenes(noise),
      train=call(Shapes, size=4000, seed=2, **SCENES),
      test=call(Shapes, size=1000, seed=1, **SCENES),
      classes=Shapes.classes,
    ),
  )
  clean, data = small(0.0), dict(data="shapes", seeds=seeds)
  return Grid(
    designs.by_size(
      clean,
      sizes=SIZES,
      samples=None,
      **data,
      archs=("ViT-32x2", "ViT-64x3", "ViT-128x4", "ResNet-8"),
    )
    + designs.by_size(
      clean,
      sizes=SIZES[1:3],
      samples=None,
      archs=("ViT-64x3",),
      methods=designs.METHODS[1:],
      **data,
    )
    + designs.by_size(
      clean, sizes=SIZES[:2], samples=POOL, archs=("ViT-64x3",), methods=designs.METHODS, **data
    )
    + designs.sizes_by_epochs(clean, sizes=SIZES[:1], epochs=(8,), arch="ViT-64x3", **data)
    + designs.quality_cuts(
      small(NOISE), data="noisy shapes", pool=POOL, samples=POOL, arch="ViT-64x3", seeds=seeds
    ),
    recipes.SMALL_COLUMNS,
  )
