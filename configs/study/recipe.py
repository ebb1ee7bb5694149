"""One recipe as python -m clip_jax.study advise names it: architecture,strategy,cut.

  python -m clip_jax.train --config=configs/study/recipe.py:ViT-B/32,CLIP+DA --workdir=DIR \
      --config.data.source.path=data/pairs --config.train.samples=3.4B

The cut is optional: recipe.py:ViT-B/32,CLIP,40 trains on the best 40% of the pairs. It needs
--config.data.source.source.path for the pairs and --config.data.source.scores for their scores.
The authors have not trained these recipes.
"""

from clip_jax.configs import clip as clip_config

from clip_jax.errors import UserError
from clip_jax.study import recipes


def get_config(recipe="ViT-B/32,CLIP"):
  """Returns the config of a recipe, "architecture[,strategy[,cut]]"."""
  arch, method, cut = (recipe.split(",") + ["CLIP", "100"][recipe.count(",") :])[:3]
  if not cut.isdigit() or not 0 < int(cut) <= 100:
    raise UserError(
      f"recipe.py:{recipe} has the cut {cut!r}, which is not a percentage from 1 to "
      "100; a recipe is architecture,strategy,cut, as in ViT-B/32,CLIP,40."
    )
  return recipes.paper(clip_config.get_config(), "data/pairs")(
    arch=arch,
    method=method,
    aug="stacked RandAugment" if method == "CLIP+DA" else "none",
    size=None,
    quality=int(cut),
    samples="3.4B",
  )
