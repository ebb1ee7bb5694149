"""All strategies on the drawings that come with the package, for the quickstart's 76,800 samples.

  python -m clip_jax.study run --grid=configs/study/strategies_openclipart.py --out=DIR --jobs=2
  python -m clip_jax.study table --runs=DIR

The argument is a number of seeds. One ViT for all, because FLIP and CLIPA need patches: 16 of them,
3 layers of width 64. Where a sample costs more or less than CLIP's, there is a second run for the
same compute. FLIP and CLIPA are without their short tuning on whole images; CLIPA's images have 24
pixels, its texts 12 tokens.
"""

from clip_jax.config import call
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.study import grids, recipes
from clip_jax.study.grid import Grid

SIZE, SAMPLES, ARCH = 4_562, 76_800, "ViT-64x3"


def get_grid(seeds="3"):
  """The runs."""
  drawings = lambda split: call(OpenClipart, split=split)
  make = recipes.small(lambda quality: drawings("train"), train=drawings("train"),
                       test=drawings("test"), classes=OpenClipart.classes)
  how = dict(data="openclipart", arch=ARCH, seeds=range(int(seeds)))
  return Grid(
      grids.by_size(make, data="openclipart", sizes=(SIZE,), samples=SAMPLES, archs=(ARCH,),
                    methods=("CLIP", "SigLIP", "SLIP", "FLIP", "CLIPA"), seeds=how["seeds"])
      + grids.augmentations(make, sizes=(SIZE,), epochs=SAMPLES / SIZE,
                            augs=grids.AUGMENTATIONS[1:], **how)
      + grids.equal_compute(make, size=SIZE, samples=SAMPLES,
                            methods=("SLIP", "FLIP", "CLIPA"), **how), recipes.SMALL_COLUMNS)
