"""Your own runs as observations for the pooled law."""

from collections.abc import Callable, Mapping
import math

import numpy as np

from clip_jax.errors import UserError
from clip_jax.study import runs_table
from clip_jax.study.evidence import METRICS, Observation
from clip_jax.study.model_shapes import ModelShape, known_shapes, short_name

_DEFAULT_EXAMPLES = 500  # Size of a test set that the accuracies do not give away.
# Metric, by its start -> column with the number of test examples, where the evaluator wrote one.
_COUNTS = {
  "zero_shot": "zero_shot/examples",
  "linear_probe": "probe/examples",
  "shot": "few_shot/examples",
  "i2t": "retrieval/examples",
  "t2i": "retrieval/examples",
  "r10": "retrieval/examples",
}
_AUGMENTED = {"crop&flip", "RandAugment", "stacked RandAugment"}


def read_own_runs(paths: str | None) -> Callable[[str], list[Observation]]:
  """Reads runs.csv files, or folders with one, separated by commas.

  Returns:
    A function from a metric to the observations of the runs that have it.

  Raises:
    UserError: a file is missing or lacks columns, or no run has the metric.
  """
  rows = [row for path in (paths or "").split(",") if path for row in runs_table.read_rows(path)]

  def observations(metric: str) -> list[Observation]:
    found = []
    for data in dict.fromkeys(row["data"] for row in rows):
      values = [(r, _value(r, metric)) for r in rows if r["data"] == data]
      values = [(row, value) for row, value in values if value is not None]
      n = test_examples([value for _, value in values])
      found += [
        _observation(row, metric, value, _counted(row, metric) or n) for row, value in values
      ]
    if rows and not found:
      own = [m for m in METRICS if any(_value(row, m) is not None for row in rows)]
      raise UserError(
        f"No run in {paths} has {metric}; of the metrics of the law they have "
        f"{', '.join(own) or 'none'}."
      )
    return found

  return observations


def test_examples(accuracies: list[float]) -> int:
  """The smallest test set in which all accuracies, in percent, are whole counts.

  It is `_DEFAULT_EXAMPLES` if there is no such set of up to 60,000 examples, or if fewer than three
  different accuracies between 0 and 100 say which.
  """
  values = np.unique([v for v in accuracies if 0 < v < 100])
  if len(values) < 3:
    return _DEFAULT_EXAMPLES
  sizes = np.arange(10, 60_001)
  fits = np.ones(len(sizes), bool)
  for value in values[:50]:
    counts = value / 100 * sizes
    fits &= np.abs(counts - np.round(counts)) < 1e-5 * sizes
  fits &= sizes < 5e4
  return int(sizes[fits][0]) if fits.any() else _DEFAULT_EXAMPLES


def smoothed(accuracy: float, examples: int) -> float:
  """Accuracy in percent with half an example added to each side, so that it is never 0 or 100."""
  return 100 * (accuracy / 100 * examples + 0.5) / (examples + 1)


def _counted(row, metric):
  """Number of test examples that the evaluator wrote; None if it did not."""
  text = next((row.get(c) for start, c in _COUNTS.items() if metric.startswith(start)), None)
  return int(float(text)) if text else None


def _value(row, metric):
  """Accuracy of a row by a metric, or by the mean of several; None if it lacks one of them."""
  parts = runs_table.MEANS[metric][1] if metric in runs_table.MEANS else (metric,)
  if any(row.get(part) in (None, "") for part in parts):
    return None
  value = float(np.mean([float(row[part]) for part in parts]))
  return value if math.isfinite(value) else None


def _observation(
  row: Mapping[str, str], metric: str, accuracy: float, examples: int
) -> Observation:
  method, aug = row["method"], row.get("aug", "none")
  if method == "CLIP+DA":
    method = f"DA:{aug if aug in _AUGMENTED else 'unstated'}"
  objective = "clip"
  if method == "SigLIP":
    objective, method = "siglip", "CLIP"
  samples = float(row["samples_seen"])
  share = min(max(accuracy / 100, 0.5 / examples), 1 - 0.5 / examples)
  return Observation(
    row["data"],
    "own",
    objective,
    method,
    float(row["quality"]),
    min(samples, float(row["dataset_size"])),
    samples,
    math.nan,
    _shape(row),
    metric,
    smoothed(accuracy, examples),
    100 * math.sqrt(share * (1 - share) / examples),
    f"your run {row['name']}",
  )


def _shape(row):
  """Shape of a run's model; half of the parameters of an unnamed one are the image tower's."""
  known = known_shapes().get(short_name(row["arch"]))
  if known:
    return known
  number = lambda name: float(row.get(name) or "nan")
  parameters = number("parameters") / 1e6
  image, total = number("image_gmacs"), number("forward_gmacs")
  if not math.isfinite(parameters):
    # Without a count, as in a model of 50 patches.
    gmacs = image if math.isfinite(image) else total
    parameters = 2 * gmacs / 0.05 if math.isfinite(gmacs) else 150.0
  tokens = image * 1e3 / (parameters / 2) if math.isfinite(image) else 50.0
  tokens = min(max(tokens, 4.0), 4000.0)
  gflops = 2 * total if math.isfinite(total) else 2 * tokens * parameters / 2 / 1e3
  return ModelShape(row["arch"], parameters / 2, parameters / 2, tokens, gflops)
