"""The evaluations of a run: each evaluator by itself, and only what has no result yet."""

from collections.abc import Callable, Mapping
import functools
import io
import math
from pathlib import Path
import traceback
from typing import Any, TypeVar

from flax import nnx
import jax
from jax.errors import JaxRuntimeError

from clip_jax.errors import UserError
from clip_jax.evaluators.embedding_cache import EmbeddingCache
from clip_jax.evaluators.results import Context, Result, metrics as metrics_of
from clip_jax.files import write_atomically
from clip_jax.inference.embedder import Embedder
from clip_jax.inference.loading import embedder_of
from clip_jax.interfaces import Evaluator
from clip_jax.model.frozen import replace_trained
from clip_jax.parallel.agreement import all_gather_objects
from clip_jax.training.metrics import MetricWriter, evaluation_metrics
from clip_jax.training.setup import TrainSetup

T = TypeVar("T")


class Evaluations:
  """Runs the evaluators of a run, and writes the metrics of each as soon as it has finished.

  An evaluator that raises an error does not stop the others: the error is logged, and the
  evaluator runs again when the command is rerun at that step.

  Attributes:
    failed: "evaluator at step N" for each failure in this process.
  """

  def __init__(self, setup: TrainSetup, workdir: Path, report: MetricWriter):
    self.setup, self.workdir, self.report = setup, workdir, report
    self.failed: list[str] = []

  def missing(self, evaluators: Mapping[str, Evaluator], step: int) -> list[str]:
    """Returns the names of the evaluators that have no metrics in metrics.jsonl at `step`."""
    return [name for name in evaluators if name not in self._recorded(step)]

  def run(self, evaluators: Mapping[str, Evaluator], step: int, state: Any) -> Context:
    """Runs the evaluators that have no metrics at `step`, in order.

    Returns:
      The context, with the results of all evaluators that have any, those in metrics.jsonl too.

    Raises:
      UserError: the processes of the run do not answer each other.
    """
    context = Context(
      EmbeddingCache(embedder(self.setup, state), self.report.note), self._recorded(step)
    )
    for name, evaluator in evaluators.items():
      if name in context.results:
        continue
      result, problem = attempt(functools.partial(evaluator.evaluate, context))
      if problem:
        self._fail(name, step, problem)
      else:
        context.results[name] = result
        self.report.log(step, metrics_of({name: result}), show=step < self.setup.total_steps)
    return context

  def draw(self, evaluators: Mapping[str, Evaluator], step: int, context: Context) -> None:
    """Saves the figures, as NAME.png, of evaluators that have results and no figure yet."""
    names = [name for name in evaluators if name in context.results]
    missing = on_process_0(lambda: [n for n in names if not (self.workdir / f"{n}.png").exists()])
    for name in missing:
      # All processes must take part.
      figure, problem = attempt(functools.partial(evaluators[name].figure, context))
      if problem:
        self._fail(f"{name} (its figure)", step, problem)
      elif figure is not None and jax.process_index() == 0:
        png = io.BytesIO()
        figure.save(png, "PNG")
        # The file comes last: after a kill in between, the figure is drawn again.
        self.report.log_figure(step, name, png.getvalue(), figure.size)
        write_atomically(self.workdir / f"{name}.png", png.getvalue())

  def _recorded(self, step):
    """Results by evaluator that metrics.jsonl has at `step`, as process 0 reads it."""
    found = on_process_0(lambda: evaluation_metrics(self.workdir, step))
    # The name of an evaluator has no slash, names of its metrics may have some.
    grouped: dict[str, dict[str, float]] = {}
    for name, value in found.items():
      evaluator, _, metric = name.partition("/")
      grouped.setdefault(evaluator, {})[metric] = math.nan if value is None else value
    return {name: Result(metrics) for name, metrics in grouped.items()}

  def _fail(self, name, step, problem):
    self.failed.append(f"{name} at step {step}")
    self.report.log_error(step, name, problem)


def on_process_0(read: Callable[[], T]) -> T:
  """Returns what `read` returns on process 0, so that all processes go by the same files."""
  if jax.process_count() == 1:
    return read()
  mine = read() if jax.process_index() == 0 else None
  return all_gather_objects({"read": mine})[0]["read"]


def attempt(make: Callable[[], T]) -> tuple[T | None, str]:
  """Returns the result of `make` and "", or None and the error that it raised on some process.

  All processes call this and return alike. Lost connections to other processes are raised.
  """
  result, problem = None, ""
  try:
    result = make()
  except Exception as error:
    if jax.process_count() > 1 and isinstance(error, JaxRuntimeError):
      raise
    problem = describe(error)
  if jax.process_count() > 1:
    problems = [one["problem"] for one in all_gather_objects({"problem": problem})]
    problem = next(filter(None, problems), "")
  return (None, problem) if problem else (result, "")


def describe(error: Exception) -> str:
  """Describes an error in one line; one that is not a UserError with its place in the code."""
  text = " ".join(str(error).split())
  if isinstance(error, UserError):
    return text
  frames = traceback.extract_tb(error.__traceback__)
  place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
  return f"{type(error).__name__}: {text}{place}"


def embedder(setup: TrainSetup, state: Any) -> Embedder:
  """Returns the model of a train state with the preprocessing and tokenizer of its config."""
  average = setup.training.evaluate_ema
  params = replace_trained(state.params, state.ema) if average else state.params
  learner = nnx.merge(setup.graphdef, params, state.stats)
  return embedder_of(learner, setup.data.views, mesh=setup.mesh)
