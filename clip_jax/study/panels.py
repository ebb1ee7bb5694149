"""The paper's figures as a list of panels, each with its metric, axes and selection of runs."""

from collections.abc import Callable, Iterable
import dataclasses
import math

from clip_jax.study.designs import short
from clip_jax.study.law_fits import series_label
from clip_jax.study.runs_table import SHIFTED, TITLES, RunResult


@dataclasses.dataclass(frozen=True)
class Panel:
  """One panel of one figure.

  Attributes:
    figure: number and letter in the paper, such as "2a".
    metric: metric on the y axis, a name in `runs_table.TITLES`.
    x: x axis: "epochs", "dataset_size", "quality", "gmacs", or a metric for a scatter plot of
      accuracies.
    varied: what distinguishes the series: "size", "vit", "arch", "method", "aug", "any" (all
      architectures and strategies), or "" for the architecture alone.
    protocols: protocols of the runs shown.
    accuracy: whether to draw bars of accuracy instead of lines of error.
  """

  figure: str
  metric: str
  x: str
  varied: str
  protocols: tuple[str, ...]
  accuracy: bool = False

  @property
  def number(self) -> int:
    """Number of the figure."""
    return int("".join(c for c in self.figure if c.isdigit()))

  @property
  def scatter(self) -> bool:
    """Whether the panel plots one metric against another."""
    return self.x in TITLES

  def includes(self, point: RunResult) -> bool:
    """Whether the panel shows one of your runs, apart from its protocol."""
    plain = point.method == "CLIP" and point.aug == "none"
    whole = point.quality == 100 or self.x == "quality"
    fits = {
      "size": plain,
      "": plain,
      "arch": plain,
      "vit": plain and point.arch.startswith("ViT"),
      "method": True,
      "aug": point.method in ("CLIP", "CLIP+DA"),
      "any": True,
    }[self.varied]
    return point.metric == self.metric and whole and fits

  def value_x(self, point: RunResult) -> float:
    """Position of a point on the x axis."""
    return {
      "epochs": point.epochs,
      "dataset_size": point.dataset_size,
      "quality": point.quality,
      "gmacs": point.gmacs,
    }[self.x]

  def series(self, point: RunResult) -> str:
    """Name of the series that a point belongs to."""
    return {
      "size": f"{short(point.dataset_size)} pairs",
      "vit": point.arch,
      "arch": point.arch,
      "method": point.method,
      "aug": point.aug,
      "": point.arch,
      "any": series_label(point),
    }[self.varied]

  @property
  def title(self) -> str:
    """Title of the panel."""
    only, *others = self.protocols
    return f"({self.figure[-1]}) " + {
      "one epoch": "one epoch",
      "same samples": "same number of samples",
      "epochs": "multiple epochs",
    }.get("" if others else only, "all runs")

  @property
  def label_y(self) -> str:
    """Label of the y axis."""
    shown = "accuracy" if self.accuracy or self.scatter else "error"
    return f"{TITLES[self.metric]}, {shown} (%)"

  @property
  def label_x(self) -> str:
    """Label of the x axis."""
    return {
      "epochs": "epochs",
      "dataset_size": "pairs",
      "quality": "best % of the pool kept",
      "gmacs": "forward compute (1e9 multiply-adds)",
    }.get(self.x, f"{TITLES.get(self.x)}, accuracy (%)")


ONCE, SAME, EPOCHS = ("one epoch",), ("same samples",), ("epochs",)
ALL = ONCE + SAME
_COCO = ("i2t_r1", "t2i_r1")


def _letters(number: int, *panels: Callable) -> list[Panel]:
  return [panel(f"{number}{letter}") for letter, panel in zip("abcdef", panels)]


def _panel(metric, x, varied, protocols, accuracy=False):
  return lambda figure: Panel(figure, metric, x, varied, protocols, accuracy)


def _retrieval(number, varied):
  """Retrieval in both directions, bars for one epoch, lines for the same number of samples.

  These are Figures 11, 15 and 18.
  """
  return _letters(
    number,
    *(_panel(m, "dataset_size", varied, ONCE, True) for m in _COCO),
    *(_panel(m, "dataset_size", varied, SAME) for m in _COCO),
  )


def _shifts(number, against, varied, protocols):
  """Accuracy on each shifted set against ImageNet: Figures 21 to 24, 26 and 27."""
  return _letters(number, *(_panel(f"{against}_{n}", against, varied, protocols) for n in SHIFTED))


PANELS = (
  _letters(
    1,
    _panel("zero_shot", "gmacs", "any", ONCE),
    _panel("zero_shot", "dataset_size", "aug", EPOCHS, True),
  )
  + _letters(2, *(_panel(m, "epochs", "size", EPOCHS) for m in ("zero_shot", "variants")))
  + _letters(3, *(_panel(m, "epochs", "size", EPOCHS) for m in ("shot5", "shot10")))
  + _letters(4, *(_panel(m, "epochs", "size", EPOCHS) for m in _COCO))
  + _letters(5, *(_panel("zero_shot", "quality", "", p) for p in (ONCE, SAME)))
  + _letters(6, *(_panel(m, "quality", "", p) for p in (ONCE, SAME) for m in ("shot5", "shot10")))
  + _letters(7, *(_panel(m, "quality", "", p) for p in (ONCE, SAME) for m in _COCO))
  + _letters(
    8,
    _panel("zero_shot", "dataset_size", "vit", ONCE, True),
    _panel("zero_shot", "gmacs", "vit", ONCE),
  )
  + _letters(9, *(_panel(m, "dataset_size", "vit", SAME) for m in ("zero_shot", "variants")))
  + _letters(
    10, *(_panel(m, "dataset_size", "vit", SAME) for m in ("linear_probe", "linear_probe_shifted"))
  )
  + _retrieval(11, "vit")
  + _letters(
    12,
    _panel("zero_shot", "dataset_size", "arch", ONCE, True),
    _panel("zero_shot", "gmacs", "arch", ONCE),
  )
  + _letters(13, *(_panel(m, "dataset_size", "arch", SAME) for m in ("zero_shot", "variants")))
  + _letters(
    14, *(_panel(m, "dataset_size", "arch", ONCE) for m in ("linear_probe", "linear_probe_shifted"))
  )
  + _retrieval(15, "arch")
  + _letters(
    16,
    _panel("zero_shot", "dataset_size", "method", ONCE, True),
    _panel("zero_shot", "gmacs", "method", ONCE),
  )
  + _letters(17, *(_panel(m, "dataset_size", "method", SAME) for m in ("zero_shot", "variants5")))
  + _retrieval(18, "method")
  + _letters(
    19,
    *(_panel(m, "dataset_size", "method", SAME) for m in ("linear_probe", "linear_probe_shifted")),
  )
  + _letters(20, *(_panel(f"zero_shot_{n}", "epochs", "size", EPOCHS) for n in SHIFTED))
  + _shifts(21, "zero_shot", "vit", ALL)
  + _shifts(22, "linear_probe", "vit", SAME)
  + _shifts(23, "zero_shot", "arch", ALL)
  + _shifts(24, "linear_probe", "arch", ALL)
  + _letters(25, *(_panel(m, "dataset_size", "arch", ONCE, True) for m in ("shot5", "shot10")))
  + _shifts(26, "zero_shot", "method", ALL)
  + _shifts(27, "linear_probe", "method", SAME)
  # Not in the paper: recall at 10, for test sets that are too small for recall at 1.
  + _letters(
    28, _panel("r10", "dataset_size", "arch", ONCE), _panel("r10", "dataset_size", "any", SAME)
  )
  + _letters(
    29,
    *(
      _panel("r10", x, v, p)
      for x, v, p in (("quality", "", ONCE), ("quality", "", SAME), ("gmacs", "any", ONCE))
    ),
  )
)

FIGURE_TITLES = {
  1: "Compute and augmentation",
  2: "Data and epochs: zero-shot",
  3: "Data and epochs: few-shot",
  4: "Data and epochs: retrieval",
  5: "Quality cut: zero-shot",
  6: "Quality cut: few-shot",
  7: "Quality cut: retrieval",
  8: "ViTs: one epoch",
  9: "ViTs: same number of samples",
  10: "ViTs: linear probe",
  11: "ViTs: retrieval",
  12: "Architectures: one epoch",
  13: "Architectures: same number of samples",
  14: "Architectures: linear probe",
  15: "Architectures: retrieval",
  16: "Strategies: one epoch",
  17: "Strategies: same number of samples",
  18: "Strategies: retrieval",
  19: "Strategies: linear probe",
  20: "Data and epochs: shifted sets",
  21: "ViTs: shifted sets",
  22: "ViTs: linear probe on shifted sets",
  23: "Architectures: shifted sets",
  24: "Architectures: linear probe on shifted sets",
  25: "Architectures: few-shot",
  26: "Strategies: shifted sets",
  27: "Strategies: linear probe on shifted sets",
  28: "Recall at 10",
  29: "Recall at 10: quality and compute",
}


@dataclasses.dataclass(frozen=True)
class Mark:
  """A point of a panel: the mean over seeds.

  Attributes:
    series: name of the series.
    x, y: position in the panel.
    spread: standard error of the mean over seeds; NaN with one seed.
    runs: number of runs averaged.
    source: "paper", or the data name of your runs.
  """

  series: str
  x: float
  y: float
  spread: float
  runs: int
  source: str


def marks(panel: Panel, points: Iterable[RunResult], source: str) -> list[Mark]:
  """Computes the marks of a panel; from the paper's points, exactly those read off that panel."""
  points = list(points)
  chosen = (
    [p for p in points if p.where == panel.figure]
    if source == "paper"
    else _select_runs(panel, points)
  )
  if panel.x == "quality" and len({p.quality for p in chosen}) < 2:
    return []
  across = {(p.where, p.metric): 100 - p.error for p in points} if panel.scatter else {}
  groups = {}
  for p in chosen:
    if panel.scatter:
      # A scatter plot shows each run on its own instead of averaging over seeds.
      x, key = across.get((p.where, panel.x)), p.where
      if x is None:
        continue
    else:
      x, key = panel.value_x(p), None
    if math.isfinite(x):
      groups.setdefault((panel.series(p), x, key), []).append(
        100 - p.error if panel.accuracy or panel.scatter else p.error
      )
  found = []
  for (series, x, _), values in groups.items():
    n, mean = len(values), sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan
    found.append(Mark(series, x, mean, spread, n, source))
  return sorted(found, key=lambda m: (m.series, m.x))


def _select_runs(panel, points):
  """Selects the runs that a panel shows."""
  # At the largest size, one epoch already has the same number of samples, so that run is shared.
  same = {p.samples_seen for p in points if p.protocol == "same samples"}
  chosen = [
    p
    for p in points
    if panel.includes(p)
    and (
      p.protocol in panel.protocols
      or ("same samples" in panel.protocols and p.samples_seen in same)
    )
  ]
  if panel.x == "quality" and chosen:
    # Compare cuts of one pool with one architecture: the combination with the most cuts.
    pool = lambda p: (p.arch, round(math.log(p.dataset_size / p.quality), 1))
    cuts = lambda one: len({p.quality for p in chosen if pool(p) == one})
    best = max(sorted({pool(p) for p in chosen}), key=cuts)
    chosen = [p for p in chosen if pool(p) == best]
  if panel.varied in ("method", "aug") and chosen:
    # Compare strategies on one architecture: the one with the most strategies.
    vary = lambda arch: len({(p.method, p.aug) for p in chosen if p.arch == arch})
    best = max(sorted({p.arch for p in chosen}), key=vary)
    chosen = [p for p in chosen if p.arch == best] if vary(best) > 1 else []
  return chosen
