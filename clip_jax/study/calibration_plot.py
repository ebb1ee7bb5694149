"""A picture of the calibration: forecasts of held-out runs against what was measured."""

from collections.abc import Sequence
from pathlib import Path

from clip_jax.study.calibration import SCHEMES, HeldOutRun, summarize
from clip_jax.study.evidence import METRICS
from clip_jax.study.plots import import_matplotlib


def draw(metric: str, held: Sequence[HeldOutRun], path: Path) -> None:
  """Draws one panel for each scheme, with the 90% interval of each run, and saves it as PNG."""
  schemes = list(dict.fromkeys(h.scheme for h in held))
  columns = min(2, len(schemes))
  rows = -(-len(schemes) // columns)
  figure = import_matplotlib().figure.Figure(figsize=(5 * columns, 4.5 * rows))
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for axis in axes[len(schemes) :]:
    axis.remove()
  summary = {c.scheme: c for c in summarize(metric, held) if c.group == "all"}
  corpora = sorted({h.run.corpus for h in held})
  for axis, scheme in zip(axes, schemes):
    own = [h for h in held if h.scheme == scheme]
    for number, corpus in enumerate(corpora):
      some = [h for h in own if h.run.corpus == corpus]
      if not some:
        continue
      x = [h.run.accuracy for h in some]
      y = [h.forecast.accuracy for h in some]
      ends = [
        [h.forecast.accuracy - h.forecast.low for h in some],
        [h.forecast.high - h.forecast.accuracy for h in some],
      ]
      color = f"C{number}" if number < 10 else "black"
      axis.errorbar(x, y, ends, fmt="o", ms=2.5, lw=0.5, alpha=0.6, color=color, label=corpus)
    top = max(h.run.accuracy for h in own) + 5
    axis.plot([0, top], [0, top], color="0.5", lw=0.8)
    one = summary[scheme]
    axis.set_title(
      f"{SCHEMES[scheme][0]}\n{one.runs} runs, {one.coverage:.0f}% in 90%, "
      f"mean error {one.error:.1f} points",
      fontsize=8,
    )
    axis.set_xlabel("measured (%)")
    axis.set_ylabel(f"forecast of {METRICS[metric][0]} (%)")
  axes[0].legend(fontsize=6)
  figure.tight_layout()
  figure.savefig(path, dpi=130, bbox_inches="tight")
