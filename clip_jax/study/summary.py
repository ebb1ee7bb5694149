"""Summarises runs by kind: mean and standard deviation of each metric over seeds."""

from collections.abc import Iterable, Sequence

import numpy as np

from clip_jax.cli.formatting import number
from clip_jax.errors import UserError
from clip_jax.study.designs import short
from clip_jax.study.runs_table import TITLES, RunResult

DEFAULT = ("i2t_r10", "t2i_r10", "zero_shot", "linear_probe")


def format_summary(points: Iterable[RunResult], metrics: Sequence[str] = ()) -> str:
  """Formats a Markdown table of accuracies in percent, mean ± standard deviation over seeds.

  Args:
    points: results of runs.
    metrics: columns, names in `runs_table.TITLES`; by default those of `DEFAULT` that the runs
      have.

  Raises:
    UserError: no run has one of the metrics, or there are no runs.
  """
  points = list(points)
  present = {p.metric for p in points}
  unknown = [name for name in metrics if name not in present]
  metrics = metrics or [name for name in DEFAULT if name in present]
  if unknown or not metrics:
    raise UserError(
      f"No run has {', '.join(unknown) or 'any of ' + ', '.join(DEFAULT)}. Set "
      f"--metric to metrics that they have: {', '.join(sorted(present)) or 'none'}."
    )
  rows = {}
  for p in sorted(points, key=lambda p: (p.data, p.protocol, p.arch, p.dataset_size)):
    if p.metric in metrics:
      kind = (
        p.data,
        p.protocol,
        p.arch,
        _strategy(p),
        short(p.dataset_size),
        short(p.samples_seen),
        number(p.gmacs),
      )
      rows.setdefault(kind, {}).setdefault(p.metric, []).append(100 - p.error)
  header = (
    "data",
    "protocol",
    "tower",
    "strategy",
    "pairs",
    "samples",
    "G multiply-adds",
    *(TITLES[name] for name in metrics),
    "runs",
  )
  lines = [header, ("---",) * len(header)]
  for kind, found in rows.items():
    lines.append(
      (
        *kind,
        *(_mean_and_deviation(found.get(name, [])) for name in metrics),
        str(max(map(len, found.values()))),
      )
    )
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _strategy(point: RunResult) -> str:
  """Strategy with its augmentation and cut: "CLIP+DA (RandAugment)" or "CLIP, best 60%"."""
  aug = f" ({point.aug})" if point.aug != "none" else ""
  return point.method + aug + (f", best {point.quality:g}%" if point.quality < 100 else "")


def _mean_and_deviation(values: Sequence[float]) -> str:
  if not values:
    return ""
  spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
  return f"{np.mean(values):.1f}{spread}"
