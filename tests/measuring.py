"""Running a single evaluator."""

from clip_jax.evaluators.results import Context


def measure(evaluator, embedder):
  """Returns the metrics of an evaluator for a model."""
  return evaluator.evaluate(Context(embedder)).metrics
