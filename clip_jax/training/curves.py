"""Draws the curves of a run: loss, accuracy, evaluations, learning rate, and time spent on data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.files import atomic_write
from clip_jax.training.metrics import read_metrics

Curve = tuple[list[int], list[float]]
_WAIT = "time waiting for data (%)"
# Title of each panel, whether a metric belongs to it, and the factor to its unit.
_PANELS = (
  ("loss", lambda name: name == "train/loss", 1),
  ("accuracy in the batch (%)", lambda name: _is_train(name) and name.endswith("_accuracy"), 100),
  ("recall at 10, held out (%)", lambda name: not _is_train(name) and name.endswith("_r10"), 1),
  ("accuracy, held out (%)", lambda name: not _is_train(name) and name.endswith("top1"), 1),
  ("learning rate", lambda name: name == "train/learning_rate", 1),
  (_WAIT, lambda name: name == "train/data_wait_fraction", 100),
)


def save_curves(workdir: Path | str) -> Path | None:
  """Draws `workdir/metrics.jsonl` as `workdir/curves.png`.

  Returns:
    The path of the figure; None if matplotlib is not installed, or no metric has two points.

  Raises:
    UserError: there is no metrics.jsonl.
    OSError: the figure cannot be written.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError:
    return None
  found = panels(read_metrics(workdir))
  if not found:
    return None
  columns = min(3, len(found))
  rows = -(-len(found) // columns)
  figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
  for k, (title, curves) in enumerate(found):
    _draw(figure.add_subplot(rows, columns, k + 1), title, curves)
  path = Path(workdir) / "curves.png"
  with atomic_write(path, "wb") as file:
    figure.savefig(file, format="png", dpi=110)
  return path


def panels(metrics: Mapping[str, Curve]) -> list[tuple[str, dict[str, Curve]]]:
  """Returns (title, curves by label) of the panels that have more than lone points.

  Args:
    metrics: (steps, values) by name, as `read_metrics` returns them.
  """
  found = []
  for title, belongs, factor in _PANELS:
    curves = {
      _label(name): (steps, [factor * value for value in values])
      for name, (steps, values) in sorted(metrics.items())
      if belongs(name) and steps
    }
    if any(len(steps) > 1 for steps, _ in curves.values()):  # A lone point is not a curve.
      found.append((title, curves))
  return found


def _draw(axes: Any, title: str, curves: dict[str, Curve]) -> None:
  for label, (steps, values) in curves.items():
    # A single point, such as the last evaluation, would be invisible as a line.
    axes.plot(steps, values, label=label, marker="o" if len(steps) < 12 else "", markersize=4)
  if title == _WAIT:  # Otherwise hundredths of a percent look like a problem.
    axes.set_ylim(0, max(5, *(value for _, values in curves.values() for value in values)))
  axes.set_title(title, fontsize=10)
  axes.set_xlabel("step", fontsize=9)
  axes.tick_params(labelsize=8)
  axes.grid(alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)
  if len(curves) > 1:
    axes.legend(fontsize=7, frameon=False)


def _is_train(name):
  return name.startswith("train/")


def _label(name):
  """Returns "image to text" for "train/clip/image_to_text_accuracy", with "val: " for val/..."""
  group, _, rest = name.partition("/")
  rest = rest.rpartition("/")[2]
  for ending in ("_accuracy", "_r10", "_top1", "top1"):
    rest = rest.removesuffix(ending)
  rest = rest.replace("_", " ")
  return rest if group == "train" else f"{group}: {rest}".rstrip(": ")
