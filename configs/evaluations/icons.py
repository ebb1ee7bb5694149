"""Evaluations on icons: retrieval by name, classification, categories, and sets never seen.

  python -m clip_jax.evaluate --model=DIR --suite=configs/evaluations/icons.py:icons --out=F.json

The argument is the folder that prepare --format=iconify wrote, see docs/icons.md. Classes of
zero-shot classification are the 300 names that most sets share. `zero_shot` uses all held-out sets,
`new_drawings` only their icons without a near duplicate in train, and `synonyms` also counts names
as right that other sets give the same drawing. The others are the kinds of held-out sets, and
categories, as labeled by the sets that have them. `linear` has the same metrics for a linear model
from edges and colours to words, fitted to 50,000 icons; chance and substring search are among the
metrics of retrieval.
"""

from ml_collections.config_dict import ConfigDict

from clip_jax.config import call
from clip_jax.data.icons.held_out_sets import KINDS
from clip_jax.data.sources.icon_records import IconRecords
from clip_jax.evaluators.concept_retrieval import ConceptRetrieval
from clip_jax.evaluators.few_shot import FewShot
from clip_jax.evaluators.labeled_sets import LabeledSet
from clip_jax.evaluators.linear_baseline import LinearBaseline
from clip_jax.evaluators.linear_probe import LinearProbe
from clip_jax.evaluators.zero_shot import ZeroShot

# Categories that several sets have, and that look different.
CATEGORIES = ("arrows", "flags", "food", "hands", "health", "maps", "music", "weather")


def get_config(path="icons"):
  """Builds the evaluators by name."""
  icons = lambda split, **options: call(IconRecords, path=path, split=split, **options)
  zero_shot = lambda split, label="label", **options: call(
    ZeroShot, source=icons(split, named=True, **options), label=label
  )
  by_name = {
    "zero_shot": zero_shot("held_out"),
    "new_drawings": zero_shot("held_out", seen=False),
    "synonyms": zero_shot("held_out", label="labels"),
    **{kind: zero_shot(kind) for kind in KINDS},
    "retrieval": call(ConceptRetrieval, source=icons("test")),
    "retrieval_held_out": call(ConceptRetrieval, source=icons("held_out", seen=False)),
  }
  labeled = lambda split: call(
    LabeledSet,
    source=icons(split, categorised=CATEGORIES),
    label="category",
    classes=CATEGORIES if split == "train" else None,
    limit=10_000,
  )
  return ConfigDict(
    {
      **by_name,
      "category_probe": call(LinearProbe, train=labeled("train"), test=labeled("test")),
      "category_few_shot": call(
        FewShot,
        train=icons("train", categorised=CATEGORIES),
        test=icons("test", categorised=CATEGORIES),
        label="category",
        classes=CATEGORIES,
        shots=(1, 5),
      ),
      "linear": call(
        LinearBaseline, train=icons("train", caption="name"), evaluators=dict(by_name)
      ),
    }
  )
