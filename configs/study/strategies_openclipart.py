"""All strategies on the Openclipart drawings of the package, for the quickstart's 76,800 samples.

  python -m clip_jax.study run --grid=configs/study/strategies_openclipart.py --out=DIR --jobs=2
  python -m clip_jax.study table --runs=DIR

The grid's argument is the number of seeds, 3 by default. All runs use a ViT with 16 patches and 3
layers of width 64, because FLIP and CLIPA need patches. Strategies with another cost per sample
than CLIP also get a run at equal compute. FLIP and CLIPA omit their final tuning on full inputs;
CLIPA trains with images of 24 pixels and texts of 12 tokens.
"""

from clip_jax.config import call
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.study import designs, recipes
from clip_jax.study.grid import Grid

SIZE, SAMPLES, ARCH = 4_562, 76_800, "ViT-64x3"


def get_grid(seeds="3"):
  """Builds the grid, with each kind of run once per seed."""
  drawings = lambda split: call(OpenClipart, split=split)
  make = recipes.small(
    lambda quality: drawings("train"),
    train=drawings("train"),
    test=drawings("test"),
    classes=OpenClipart.classes,
  )
  how = dict(data="openclipart", arch=ARCH, seeds=range(int(seeds)))
  return Grid(
    designs.by_size(
      make,
      data="openclipart",
      sizes=(SIZE,),
      samples=SAMPLES,
      archs=(ARCH,),
      methods=("CLIP", "SigLIP", "SLIP", "FLIP", "CLIPA"),
      seeds=how["seeds"],
    )
    + designs.augmentations(
      make, sizes=(SIZE,), epochs=SAMPLES / SIZE, augs=designs.AUGMENTATIONS[1:], **how
    )
    + designs.equal_compute(
      make, size=SIZE, samples=SAMPLES, methods=("SLIP", "FLIP", "CLIPA"), **how
    ),
    recipes.SMALL_COLUMNS,
  )
