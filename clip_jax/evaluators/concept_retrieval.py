"""Retrieval between images and names: an image has several names, and a name several images."""

from collections.abc import Sequence
import math

import numpy as np

from clip_jax.cli.values import PositiveInt, Records, checked
from clip_jax.evaluators.accuracy import TIE
from clip_jax.evaluators.results import (
  Context,
  Evaluator,
  Result,
  check_first_record,
  evaluated_records,
  source_detail,
)
from clip_jax.interfaces import Source

_KS = (1, 5, 10)


@checked
class ConceptRetrieval(Evaluator):
  """Recall between images and names; every image that has a name is right for it.

  The names to choose from are the main names of the records, each once. Image-to-text R@k is the
  percentage of images with one of their names among the k nearest. Text-to-image R@k is the
  percentage of names with one of their images among the k nearest. Ties count as misses.

  A synonym is a name that an image has only because the same drawing is called so elsewhere.
  `synonyms_r{k}` is text-to-image recall with synonyms as queries; the images that have the query
  as a name of their own are left out. It is compared with a search for images whose own names
  contain the query. Since that does not rank its results, it gets the probability that k of them,
  drawn at random, include a right one.
  """

  def __init__(
    self,
    source: Source,
    own: str = "names",
    right: str = "concept",
    limit: Records | None = None,
    chunk_size: PositiveInt = 2048,
  ):
    """Creates the evaluator.

    Args:
      source: records {"image": ..., own: list of str, right: list of str}.
      own: field with the image's own names, the main one first.
      right: field with all names of the image, its own and synonyms.
      limit: maximum number of records, spread evenly over the source; None for all.
      chunk_size: rows of scores computed at a time; changes only the memory needed.

    Raises:
      UserError: an empty source, or a first record without the fields.
    """
    self._source, self._own, self._right, self._rows = source, own, right, chunk_size
    self._places = evaluated_records(source, limit)
    check_first_record(source, self._places, ("image", own, right))

  def evaluate(self, context: Context) -> Result:
    """Computes recalls in percent and counts.

    The metrics are `{image_to_text,text_to_image,synonyms}_{r1,r5,r10}`, what chance gives for the
    first two, `chance_...`, `substring_synonyms_{r1,r5,r10}`, `examples`, `names` and `synonyms`.
    """
    images = context.embedder.images(self._source, self._places, fields=(self._own, self._right))
    own = [list(record[self._own]) for record in images.records]
    names = list(dict.fromkeys(one[0] for one in own))
    z_text = context.embedder.texts(names)
    member = membership([record[self._right] for record in images.records], names)
    mine = membership(own, names)
    none = np.zeros((1, 1), bool)
    metrics = {
      **recalls("image_to_text", best_ranks(images.z, z_text, member, none, self._rows)),
      **recalls("text_to_image", best_ranks(z_text, images.z, member.T, none, self._rows)),
      **{f"chance_image_to_text_r{k}": chance(member, k) for k in _KS},
      **{f"chance_text_to_image_r{k}": chance(member.T, k) for k in _KS},
      "examples": float(len(own)),
      "names": float(len(names)),
    }
    asked = np.flatnonzero((member & ~mine).any(axis=0))
    metrics["synonyms"] = float(len(asked))
    if len(asked):
      right, left_out = (member & ~mine)[:, asked].T, mine[:, asked].T
      rank = best_ranks(z_text[asked], images.z, right, left_out, self._rows)
      metrics |= recalls("synonyms", rank)
      metrics |= _substring(own, [names[i] for i in asked], right, left_out)
    return Result(metrics, source_detail(self._source, images))


def membership(texts: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
  """Returns which of the names each image has, bool [n, m]."""
  column = {name: i for i, name in enumerate(names)}
  member = np.zeros((len(texts), len(names)), bool)
  for row, own in zip(member, texts):
    row[[column[name] for name in own if name in column]] = True
  return member


def best_ranks(
  queries: np.ndarray,
  candidates: np.ndarray,
  right: np.ndarray,
  left_out: np.ndarray,
  chunk_size: int = 2048,
) -> np.ndarray:
  """Counts the wrong candidates that score at least as high as the best right one; 0 is first.

  Args:
    queries: unit vectors, float32 [n, E].
    candidates: unit vectors, float32 [m, E].
    right: bool [n, m], at least one per query.
    left_out: bool [n, m], candidates that do not count, or [1, 1] for none.
    chunk_size: queries at a time.

  Returns:
    int64 [n]. NaN scores count as errors.
  """
  ranks = []
  for start in range(0, len(queries), chunk_size):
    rows = slice(start, start + chunk_size)
    scores = queries[rows] @ candidates.T
    best = np.where(right[rows], scores, -np.inf).max(axis=1, keepdims=True)
    out = left_out if len(left_out) == 1 else left_out[rows]
    ranks.append((~right[rows] & ~out & ~(scores < best - TIE)).sum(axis=1))
  return np.concatenate(ranks)


def recalls(direction: str, rank: np.ndarray) -> dict[str, float]:
  """Returns R@1, R@5 and R@10 in percent."""
  return {f"{direction}_r{k}": 100 * float(np.mean(rank < k)) for k in _KS}


def chance(right: np.ndarray, k: int) -> float:
  """Returns the R@k in percent of random orders; `right` is bool [n, m]."""
  counts, times = np.unique(right.sum(axis=1), return_counts=True)
  hit = [hit_probability(right.shape[1], int(good), k) for good in counts]
  return 100 * float(np.dot(hit, times) / len(right))


def hit_probability(results: int, good: int, k: int) -> float:
  """Returns the probability that k results, drawn without replacement, include a good one."""
  if not good:
    return 0.0
  return 1 - math.comb(results - good, k) / math.comb(results, k) if results > k else 1.0


def _substring(own, queries, right, left_out):
  """Returns the recalls of a search for images whose names contain the query."""
  total = np.zeros(len(_KS))
  for query, good, out in zip(queries, right, left_out):
    hits = [j for j in np.flatnonzero(~out) if any(query in name for name in own[j])]
    total += [hit_probability(len(hits), int(good[hits].sum()), k) for k in _KS]
  return {f"substring_synonyms_r{k}": 100 * t / len(queries) for k, t in zip(_KS, total)}
