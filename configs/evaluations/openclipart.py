"""Evaluations on the Openclipart drawings of the package: retrieval and classification.

  python -m clip_jax.evaluate --model=DIR --suite=configs/evaluations/openclipart.py --out=F.json

Retrieval uses the 459 test pairs, with short and with long captions. The classes are the seven
subsets that the drawings come from (icons, flags, ...), for zero-shot classification, a linear
probe, and few-shot classification with 1, 5 and 10 drawings per class. Nearly half of the drawings
are of one subset, so `mean_per_class` is more informative than `top1`. Takes less than a minute on
2 CPU cores for a model as small as the quickstart's.
"""

from ml_collections.config_dict import ConfigDict

from clip_jax.config import call
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.evaluators.few_shot import FewShot
from clip_jax.evaluators.labeled_sets import LabeledSet
from clip_jax.evaluators.linear_probe import LinearProbe
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.zero_shot import ZeroShot


def get_config():
  """Builds the evaluators by name."""
  train, test = call(OpenClipart, split="train"), call(OpenClipart, split="test")
  return ConfigDict(
    {
      "retrieval": call(Retrieval, source=test),
      "retrieval_long": call(
        Retrieval, source=call(OpenClipart, split="test", caption="caption_long")
      ),
      "zero_shot": call(ZeroShot, source=test, templates=("{}", "a {}", "a drawing of a {}")),
      "few_shot": call(FewShot, train=train, test=test, shots=(1, 5, 10)),
      "probe": call(
        LinearProbe, train=call(LabeledSet, source=train), test=call(LabeledSet, source=test)
      ),
    }
  )
