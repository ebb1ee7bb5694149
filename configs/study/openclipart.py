"""Data size, strategy, quality and architecture on the Openclipart drawings of the package.

  python -m clip_jax.study run --grid=configs/study/openclipart.py --out=DIR --jobs=2

The grid's argument is the number of seeds, 3 by default. In the noisy pool, 40% of the drawings
have the caption of another drawing; its 60% cut contains only drawings with their own caption, as a
perfect score would select. Three more data sets pair the same drawings with other texts: long
captions (the caption and keywords), titles, and keywords.
"""

from clip_jax.config import call
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.study import designs, recipes
from clip_jax.study.grid import Grid

POOL, SAMPLES, NOISE = 4_562, 25_600, 0.4
SIZES = (570, 1_140, 2_281, POOL)
TEXTS = {"caption_long": "long captions", "title": "titles", "keywords": "keywords"}


def drawings(noise=0.0, caption="caption"):
  """Returns the source for a quality in percent: noisy captions at 100, correct ones below."""
  return lambda quality: call(
    OpenClipart, split="train", caption=caption, swapped=noise if quality == 100 else 0.0
  )


def get_grid(seeds="3"):
  """Builds the grid, with each kind of run once per seed."""
  seeds, small = (
    range(int(seeds)),
    lambda **how: recipes.small(
      drawings(**how),
      train=call(OpenClipart, split="train"),
      test=call(OpenClipart, split="test"),
      classes=OpenClipart.classes,
    ),
  )
  clean, same = small(), dict(data="openclipart", samples=SAMPLES, seeds=seeds)
  return Grid(
    designs.by_size(clean, sizes=SIZES, archs=("ResNet-8",), **same)
    + designs.by_size(
      clean, sizes=SIZES[1::2], archs=("ResNet-8",), methods=("SLIP", "CLIP+DA"), **same
    )
    + designs.by_size(
      clean, sizes=SIZES[1::2], archs=("ViT-64x3",), methods=("CLIP", "FLIP"), **same
    )
    + designs.by_size(clean, sizes=SIZES[-1:], archs=("Mixer-64x3",), **same)
    + designs.augmentations(
      clean,
      data="openclipart",
      sizes=SIZES[1:2],
      epochs=22,
      seeds=seeds,
      augs=("none", "crop&flip", "RandAugment"),
      arch="ResNet-8",
    )
    + [
      run
      for field, name in TEXTS.items()
      for run in designs.by_size(
        small(caption=field),
        sizes=SIZES[-1:],
        archs=("ResNet-8",),
        **same | dict(data=f"openclipart, {name}"),
      )
    ]
    + designs.compare_cut(
      small(noise=NOISE),
      data="noisy openclipart",
      pool=POOL,
      cut=60,
      samples=SAMPLES,
      arch="ResNet-8",
      seeds=seeds,
    ),
    recipes.SMALL_COLUMNS,
  )
