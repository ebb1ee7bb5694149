"""Compares the captions that a model writes with those of the records."""

from collections import Counter
from collections.abc import Sequence
import math

import numpy as np

from clip_jax.cli.values import PositiveInt, checked
from clip_jax.errors import UserError
from clip_jax.evaluators.results import (
  Context,
  Evaluator,
  Result,
  check_first_record,
  evaluated_records,
)
from clip_jax.interfaces import Source

_ORDERS = 4  # n-grams of 1 to 4 words.
_SIGMA = 6.0  # Width of the penalty of a difference in length, in words.


@checked
class CaptionQuality(Evaluator):
  """Exact matches, and a score of common n-grams like CIDEr-D, of captions written by the model.

  Texts are compared in lower case and without punctuation. A caption matches if it is equal to one
  of the captions of its record.

  Args:
    source: records with images and captions.
    limit: number of records, spread evenly; all by default.
    beams: see `Embedder.caption`.
  """

  def __init__(self, source: Source, limit: PositiveInt | None = None, beams: PositiveInt = 1):
    self._source, self._beams = source, beams
    self._places = evaluated_records(source, limit)
    check_first_record(source, self._places, ("image", "text"))

  def evaluate(self, context: Context) -> Result:
    """Computes `exact` in percent, `cider` in 0 to 10, and the number of `examples`.

    Raises:
      UserError: the model cannot write captions.
    """
    embedder = context.embedder
    if not hasattr(embedder, "caption"):
      raise UserError("This model cannot write captions: it has no method caption(images).")
    records = [self._source[int(i)] for i in self._places]
    texts = [[r["text"]] if isinstance(r["text"], str) else list(r["text"]) for r in records]
    written = embedder.caption([r["image"] for r in records], beams=self._beams)
    scores = cider(written, texts)
    exact = [words(w) in [words(text) for text in own] for w, own in zip(written, texts)]
    n = len(records)
    return Result(
      {
        "exact": 100 * float(np.mean(exact)),
        "cider": float(np.mean(scores)),
        "examples": float(n),
      },
      {
        "standard_error": {
          "exact": 100 * float(np.std(exact)) / math.sqrt(n),
          "cider": float(np.std(scores)) / math.sqrt(n),
        },
        "first_captions": written[:10],
      },
    )


def words(text: str) -> list[str]:
  """Splits a text into its words in lower case, without punctuation."""
  kept = "".join(c if c.isalnum() or c.isspace() else " " for c in text.lower())
  return kept.split()


def cider(written: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
  """Computes a score of common n-grams of each caption with its references, float64 [n], 0 to 10.

  For n = 1 to 4, it is the cosine of the counts of n-grams, weighted by the logarithm of the
  inverse fraction of images whose references have the n-gram, where counts above those of the
  reference do not help, times exp(-d^2 / 72) for a difference of d words; averaged over references
  and n, and multiplied by 10. Words are not stemmed, unlike in the published program.

  Args:
    written: one caption for each image.
    references: the captions of each image, one or more.

  Source: Vedantam et al. 2015 (CIDEr), sec. 4 and 5 (CIDEr-D).
  """
  counted = [[_grams(text) for text in own] for own in references]
  frequency: Counter = Counter()
  for own in counted:
    frequency.update({gram for grams in own for order in grams for gram in order})
  total = math.log(max(len(references), 2))

  def vector(grams):
    weigh = lambda gram: max(0.0, total - math.log(max(1, frequency[gram])))
    return [{gram: count * weigh(gram) for gram, count in order.items()} for order in grams]

  scores = []
  for text, own in zip(written, counted, strict=True):
    mine = vector(_grams(text))
    each = [
      _similarity(mine, vector(grams), _length(_grams(text)) - _length(grams)) for grams in own
    ]
    scores.append(10 * float(np.mean(each)))
  return np.array(scores)


def _grams(text):
  """Counts of the n-grams of a text, a Counter for each n."""
  tokens = words(text)
  return [
    Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    for n in range(1, _ORDERS + 1)
  ]


def _length(grams):
  return sum(grams[0].values())


def _similarity(a, b, difference):
  """Mean over n of the clipped cosine, times the penalty of the difference in length."""
  found = []
  for one, other in zip(a, b):
    norms = math.sqrt(sum(x * x for x in one.values()) * sum(x * x for x in other.values()))
    common = sum(min(x, other[gram]) * other[gram] for gram, x in one.items() if gram in other)
    found.append(common / norms if norms else 0.0)
  return float(np.mean(found)) * math.exp(-(difference**2) / (2 * _SIGMA**2))
