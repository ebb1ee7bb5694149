"""Evaluators: their interface, how they are run, and what they return."""

import abc
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError
from clip_jax.evaluators.embedding_cache import EmbeddingCache, ImageEmbeddings
from clip_jax.interfaces import Embedder, Source


@dataclasses.dataclass(frozen=True)
class Result:
  """Result of an evaluator.

  Attributes:
    metrics: values by name; accuracies are in percent.
    detail: JSON-serialisable record of how the metrics were obtained. Its "standard_error" maps
      names of metrics to their standard errors.
  """

  metrics: dict[str, float]
  detail: dict[str, Any] = dataclasses.field(default_factory=dict)


class Context:
  """The model to evaluate, and the results of the evaluators that ran before.

  Attributes:
    embedder: the model with its embedding cache: images that several evaluators use are embedded
      once, if they are embedded through `images` and `texts` of the cache.
    results: earlier results by the name of the evaluator.
  """

  def __init__(
    self, embedder: Embedder | EmbeddingCache, results: Mapping[str, Result] | None = None
  ):
    """Stores the attributes; gives the embedder an empty cache if it has none."""
    self.embedder = EmbeddingCache.of(embedder)
    self.results = dict(results or {})

  @property
  def metrics(self) -> dict[str, float]:
    """Metrics of the earlier results, keyed "evaluator/metric"."""
    return metrics(self.results)


class Evaluator(abc.ABC):
  """Base class of evaluators, which measure a model."""

  @abc.abstractmethod
  def evaluate(self, context: Context) -> Result:
    """Measures the model of `context`."""

  def figure(self, context: Context) -> Image.Image | None:
    """Draws the results, or returns None if there is nothing to draw."""
    return None


def evaluate_all(
  evaluators: Mapping[str, Any], context: Context, say: Callable[[str], None] = lambda line: None
) -> dict[str, Result]:
  """Runs evaluators in order, adds their results to `context`, and returns these results by name.

  Args:
    evaluators: evaluators by name.
    context: the model and its results so far, which later evaluators can read.
    say: called with the name of each evaluator before it runs.
  """
  for name, evaluator in evaluators.items():
    say(name)
    context.results[name] = evaluator.evaluate(context)
  return {name: context.results[name] for name in evaluators}


def check_needs(evaluators: Mapping[str, Any]) -> None:
  """Checks that evaluators read metrics of others that run before, so that none fails afterwards.

  Args:
    evaluators: evaluators by name, in the order in which they run. One that reads metrics of others
      lists them in its attribute `needs`, as "evaluator/metric".

  Raises:
    UserError: an evaluator needs a metric of one that does not run before it.
  """
  before: list[str] = []
  for name, evaluator in evaluators.items():
    for metric in getattr(evaluator, "needs", ()):
      other = metric.partition("/")[0]
      if other not in before:
        raise UserError(
          f"The evaluator {name!r} needs the metric {metric!r}, but no evaluator {other!r} runs "
          f"before it; {', '.join(before) or 'none'} do.{did_you_mean(other, before)} Evaluators "
          "run in the order of their names."
        )
    before.append(name)


def metrics(results: Mapping[str, Result]) -> dict[str, float]:
  """Returns the metrics of all evaluators in one dict, keyed "evaluator/metric"."""
  return {
    f"{name}/{metric}": value
    for name, result in results.items()
    for metric, value in result.metrics.items()
  }


def evaluated_records(source: Source, limit: int | None) -> np.ndarray:
  """Selects the records to evaluate: all, or `limit` of them spread evenly over the source.

  They are not the first `limit` records because sources are often sorted by class.

  Returns:
    Indices of the records, int64 [n], ascending.

  Raises:
    UserError: the source is empty.
  """
  if not len(source):
    raise UserError(
      f"{type(source).__name__} has no records, so there is nothing to evaluate. "
      "Check its split or path."
    )
  count = len(source) if limit is None else min(limit, len(source))
  return np.arange(count) * len(source) // count


def check_first_record(source: Source, places: np.ndarray, fields: tuple[str, ...]) -> None:
  """Checks the fields of the first record to evaluate, so that a mistake is found before training.

  A record that cannot be read is left to the evaluation, which allows a few of them.

  Raises:
    UserError: the record lacks one of `fields`.
  """
  try:
    record = source[int(places[0])]
  except Exception:
    return
  missing = [name for name in fields if name not in record]
  if missing:
    raise UserError(
      f"Record {places[0]} of {describe_source(source)} has no {missing[0]!r}, only "
      f"{', '.join(record)}, so that there is nothing to evaluate. Choose another source or field."
    )


def describe_source(source: Source) -> str:
  """Describes a source by its type and its name, path and split, where it has them."""
  parts = [
    f"{name}={getattr(source, name)!r}"
    for name in ("name", "path", "split")
    if isinstance(getattr(source, name, None), str)
  ]
  return f"{type(source).__name__}({', '.join(parts)})"


def source_detail(source: Source, images: ImageEmbeddings, **more: Any) -> dict[str, Any]:
  """Returns the `detail` entries common to all evaluators of a source, plus `more`."""
  return {
    "source": describe_source(source),
    "records": len(source),
    "asked": len(images.records),
    "resize": images.resize,
    "unreadable": len(images.unreadable),
    "unreadable_records": images.unreadable[:100],
    **more,
  }


def binomial_error(share: float, n: int) -> float:
  """Standard error, in percentage points, of a proportion `share` of n independent examples."""
  return 100 * (share * (1 - share) / n) ** 0.5
