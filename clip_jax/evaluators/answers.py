"""What evaluators answer: numbers to log, and what is needed to trust them."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.evaluators.shared import Images, Shared
from clip_jax.interfaces import Embedder, Source


@dataclasses.dataclass(frozen=True)
class Answer:
  """An evaluator's answer.

  Attributes:
    metrics: numbers by name; accuracies in percent.
    detail: how they were got, in what JSON can hold. "standard_error" has that of metrics, by their
      names.
  """
  metrics: dict[str, float]
  detail: dict[str, Any]


class Question:
  """An evaluator with an `answer`; as any evaluator, it can be called for the metrics alone."""

  answer: Callable[[Embedder], Answer]

  def __call__(self, embedder: Embedder) -> dict[str, float]:
    """The metrics of `answer`."""
    return self.answer(embedder).metrics


def ask(evaluators: Mapping[str, Any], shared: Shared,
        say: Callable[[str], None] = lambda line: None) -> dict[str, Answer]:
  """Every evaluator's answer, by name; images that several ask about are embedded once.

  Args:
    evaluators: with `answer(embedder)`, or called for metrics alone; or with `summary(metrics)` of
      what the ones before it answered, by `evaluator/metric`.
    shared: the model.
    say: takes the name of each before it is asked.
  """
  answers = {}
  for name, evaluator in evaluators.items():
    say(name)
    if hasattr(evaluator, "summary"):
      answers[name] = evaluator.summary(metrics(answers))
    elif hasattr(evaluator, "answer"):
      answers[name] = evaluator.answer(shared)
    else:
      answers[name] = Answer(dict(evaluator(shared)), {})
  return answers


def metrics(answers: Mapping[str, Answer]) -> dict[str, float]:
  """All numbers, by `evaluator/metric`."""
  return {f"{name}/{metric}": value for name, answer in answers.items()
          for metric, value in answer.metrics.items()}


def places(source: Source, limit: int | None) -> np.ndarray:
  """Places of the records to ask about, ascending: all, or `limit` spread evenly over the source.

  Evenly, not the first ones, because sources are often sorted by class.

  Raises:
    UserError: `limit` is below 1, or the source is empty.
  """
  if limit is not None and limit < 1:
    raise UserError(f"limit={limit}; expected at least 1 record, or None for all of them.")
  if not len(source):
    raise UserError(
        f"{type(source).__name__} has no records, so there is nothing to evaluate. Check the split "
        "or the path that it is made from.")
  count = len(source) if limit is None else min(limit, len(source))
  return np.arange(count) * len(source) // count


def origin(source: Source) -> str:
  """What a source is, in a few words."""
  told = [f"{name}={getattr(source, name)!r}" for name in ("name", "path", "split")
          if isinstance(getattr(source, name, None), str)]
  return f"{type(source).__name__}({', '.join(told)})"


def told(source: Source, images: Images, **more: Any) -> dict[str, Any]:
  """The detail that every answer about a source has, and `more`."""
  return {"source": origin(source), "records": len(source), "asked": len(images.records),
          "resize": images.resize, "unreadable": len(images.unreadable),
          "unreadable_records": images.unreadable[:100], **more}


def binomial_error(share: float, n: int) -> float:
  """Standard error in percentage points of a share found among n independent ones."""
  return 100 * (share * (1 - share) / n) ** .5
