"""Evaluation results: running evaluators, their metrics, and how these were obtained."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

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
  detail: dict[str, Any]


class Question:
  """Base class of evaluators that define `answer`; calling one returns its metrics only."""

  answer: Callable[[Embedder], Result]

  def __call__(self, embedder: Embedder) -> dict[str, float]:
    """Returns the metrics of `answer`."""
    return self.answer(embedder).metrics


def evaluate_all(
  evaluators: Mapping[str, Any],
  shared: EmbeddingCache,
  say: Callable[[str], None] = lambda line: None,
) -> dict[str, Result]:
  """Runs evaluators in order and returns their results by name.

  Images that several evaluators use are embedded once.

  Args:
    evaluators: evaluators by name. Each has `answer(embedder)`; or is a callable that returns only
      metrics; or has `summary(metrics)`, which receives the metrics of the evaluators before it,
      keyed "evaluator/metric".
    shared: the model with its embedding cache.
    say: called with the name of each evaluator before it runs.
  """
  answers = {}
  for name, evaluator in evaluators.items():
    say(name)
    if hasattr(evaluator, "summary"):
      answers[name] = evaluator.summary(metrics(answers))
    elif hasattr(evaluator, "answer"):
      answers[name] = evaluator.answer(shared)
    else:
      answers[name] = Result(dict(evaluator(shared)), {})
  return answers


def metrics(answers: Mapping[str, Result]) -> dict[str, float]:
  """Returns the metrics of all evaluators in one dict, keyed "evaluator/metric"."""
  return {
    f"{name}/{metric}": value
    for name, answer in answers.items()
    for metric, value in answer.metrics.items()
  }


def evaluated_records(source: Source, limit: int | None) -> np.ndarray:
  """Selects the records to evaluate: all, or `limit` of them spread evenly over the source.

  They are not the first `limit` records because sources are often sorted by class.

  Returns:
    Indices of the records, int64 [n], ascending.

  Raises:
    UserError: `limit` is below 1, or the source is empty.
  """
  if limit is not None and limit < 1:
    raise UserError(f"limit={limit}; expected at least 1, or None for all records.")
  if not len(source):
    raise UserError(
      f"{type(source).__name__} has no records, so there is nothing to evaluate. "
      "Check its split or path."
    )
  count = len(source) if limit is None else min(limit, len(source))
  return np.arange(count) * len(source) // count


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
