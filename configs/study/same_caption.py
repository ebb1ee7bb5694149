"""Equal captions in a batch as negatives, as positives, or left out of the loss, on the drawings.

  python -m clip_jax.study run --grid=configs/study/same_caption.py --out=DIR --jobs=2
  python -m clip_jax.study table --runs=DIR

The grid's argument is the number of seeds, 3 by default. 25% of the short captions of the drawings
occur more than once, and in a batch of 512, 10% of the rows have their caption in another row.
76,800 samples are 150 steps. For CLIP, positives are the same as negatives if their texts are
equal, so that this option runs as a check.
"""

from clip_jax.config import call
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.study import designs, recipes
from clip_jax.study.grid import Grid

SIZE, SAMPLES, ARCH, BATCH = 4_562, 76_800, "ViT-64x3", 512
OPTIONS = ("negative", "positive", "ignore")
COLUMNS = {name: key for name, key in recipes.SMALL_COLUMNS.items() if key.startswith("retrieval/")}


def get_grid(seeds="3"):
  """Builds the grid, with each option once per seed."""
  drawings = lambda split: call(OpenClipart, split=split)
  small = recipes.small(
    lambda quality: drawings("train"),
    train=drawings("train"),
    test=drawings("test"),
    classes=OpenClipart.classes,
    batch_size=BATCH,
  )

  def with_option(option):
    def make(**how):
      config = small(**how)
      config.objective.same_caption = option
      for name in set(config.final_evaluators) - {"retrieval"}:
        del config.final_evaluators[name]
      return config

    return make

  runs = [
    run
    for option in OPTIONS
    for run in designs.by_size(
      with_option(option),
      data=f"openclipart, same caption {option}",
      sizes=(SIZE,),
      samples=SAMPLES,
      archs=(ARCH,),
      seeds=range(int(seeds)),
    )
  ]
  return Grid(runs, COLUMNS)
