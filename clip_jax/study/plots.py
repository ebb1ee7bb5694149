"""Draws the panels as PNG and SVG, and an HTML page with all figures and their data tables."""

from collections.abc import Sequence
import html
from pathlib import Path
import re
from typing import Any

from clip_jax.errors import UserError
from clip_jax.files import atomic_write, write_atomically
from clip_jax.study import runs_table
from clip_jax.study.designs import ARCHITECTURES, AUGMENTATIONS, METHODS, VITS, short
from clip_jax.study.panels import FIGURE_TITLES, PANELS, Mark, Panel, marks

# The Okabe-Ito palette, which colour-blind readers can distinguish; the markers help in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PAPER_ALPHA = 0.35
_STYLE = {
  "font.size": 9,
  "axes.titlesize": 9,
  "axes.labelsize": 9,
  "legend.fontsize": 7.5,
  "xtick.labelsize": 8,
  "ytick.labelsize": 8,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.color": "#dddddd",
  "grid.linewidth": 0.6,
  "axes.axisbelow": True,
  "svg.hashsalt": "clip_jax",
  "svg.fonttype": "none",
  "lines.markersize": 4.5,
}


def draw_all(points: Sequence[runs_table.RunResult], out: Path) -> int:
  """Draws every figure that has data, once for each data set.

  Args:
    points: results of your runs, from `runs_table.read_results`; if empty, only the paper's are
      drawn.
    out: output folder, created if missing.

  Returns:
    The number of figures drawn.

  Raises:
    UserError: matplotlib is not installed, or there is nothing to draw.
  """
  matplotlib = import_matplotlib()
  paper = runs_table.paper_results()
  out.mkdir(parents=True, exist_ok=True)
  sections, left_out = [], {}
  for data in sorted({p.data for p in points}) or ["paper"]:
    own = [p for p in points if p.data == data]
    folder = out / _slug(data)
    folder.mkdir(exist_ok=True)
    for number in sorted({panel.number for panel in PANELS}):
      filled = [
        (panel, marks(panel, own, data), marks(panel, paper, "paper"))
        for panel in PANELS
        if panel.number == number
      ]
      filled = [one for one in filled if _has_comparison(*one[1:], alone=not points)]
      if not filled:
        left_out.setdefault(data, []).append(number)
        continue
      name = f"{_slug(data)}/figure-{number:02d}"
      # Without pyplot, so that a notebook's backend, style and figures stay as they are.
      with matplotlib.rc_context(_STYLE):
        figure = _figure(matplotlib.figure.Figure, filled)
        for kind in ("png", "svg"):
          with atomic_write(out / f"{name}.{kind}", "wb") as file:
            figure.savefig(file, format=kind, dpi=160)
      sections.append((data, number, name, filled))
  if not sections:
    raise UserError(
      "None of the paper's figures can be drawn from these runs: a figure needs "
      "runs of its protocol and metric at two or more sizes or quality cuts. Run a "
      "grid of configs/study."
    )
  write_atomically(out / "index.html", _page(sections, left_out))
  return len(sections)


def _has_comparison(own, paper, *, alone):
  """Whether a panel compares at least two points; any panel does if the paper is drawn `alone`."""
  return bool(paper) if alone else len(own) > 1 or bool(own and paper)


def import_matplotlib() -> Any:
  """Imports matplotlib, which is optional.

  Raises:
    UserError: it is not installed.
  """
  try:
    import matplotlib.figure
  except ImportError as error:
    raise UserError(
      "Drawing figures needs matplotlib: pip install 'scaling-clip-jax[figures]' "
      "or pip install matplotlib."
    ) from error
  return matplotlib


def _figure(figure_class, filled):
  """Draws one figure: up to three panels per row, with a shared legend below."""
  columns = min(len(filled), 2 if len(filled) in (2, 4) else 3)
  rows = -(-len(filled) // columns)
  figure = figure_class(figsize=(3.7 * columns, 3.1 * rows + 0.5), layout="constrained")
  axes = figure.subplots(rows, columns, squeeze=False)
  names = list(dict.fromkeys(m.series for _, own, paper in filled for m in own or paper))
  style = {
    name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
    for i, name in enumerate(_sorted_series(names))
  }
  handles, has_paper = {}, False
  for axis, (panel, own, paper) in zip(axes.flat, filled):
    if panel.accuracy:
      _bars(axis, own, paper, style, handles)
    else:
      _lines(axis, panel, own, paper, style, handles)
    has_paper |= bool(own and paper)
    axis.set_title(panel.title, loc="left")
    axis.set_xlabel(panel.label_x)
    axis.set_ylabel(panel.label_y)
  for axis in axes.flat[len(filled) :]:
    axis.set_visible(False)
  if has_paper:
    from matplotlib.lines import Line2D

    above = " (top axis)" if len(figure.axes) > axes.size else ""
    handles[f"paper{above}"] = Line2D(
      [], [], color="#888888", alpha=PAPER_ALPHA + 0.2, linewidth=1, marker="."
    )
  if len(handles) > 1:
    figure.legend(
      handles.values(),
      handles.keys(),
      loc="outside lower center",
      frameon=False,
      ncols=min(len(handles), 2 * columns if columns > 1 else 1 + (len(handles) > 3)),
    )
  return figure


def _lines(axis, panel, own, paper, style, handles):
  """Draws the series of a panel as lines, or as points in a scatter of two metrics."""
  front = own or paper
  for name in _sorted_series(list(dict.fromkeys(m.series for m in front))):
    colour, marker = style[name]
    line = [m for m in front if m.series == name]
    handles[name] = axis.errorbar(
      [m.x for m in line],
      [m.y for m in line],
      yerr=[m.spread for m in line],
      color=colour,
      marker=marker,
      linewidth=0 if panel.scatter else 1.4,
      elinewidth=1,
      capsize=2,
      markerfacecolor="white" if marker in "os" else colour,
    )
  xs, log = [m.x for m in front], panel.x in ("epochs", "dataset_size", "gmacs")
  if own and paper:
    low, high = min(xs), max(xs)
    overlap = any(low <= m.x <= high for m in paper)
    # Where the paper's sizes are far from ours, draw them on a second x axis at the top.
    back = axis if overlap or not log else axis.twiny()
    if back is not axis:
      back.grid(False)
      back.set_xscale("log")
      back.tick_params(colors="#888888", labelsize=7)
      _ticks(back, panel, [m.x for m in paper], most=4)
    for name in dict.fromkeys(m.series for m in paper):
      line = [m for m in paper if m.series == name]
      back.plot(
        [m.x for m in line],
        [m.y for m in line],
        color="#888888",
        alpha=PAPER_ALPHA,
        linewidth=1,
        marker=".",
        zorder=0,
      )
    xs = xs + [m.x for m in paper] if back is axis else xs
  if log:
    axis.set_xscale("log", base=2 if panel.x == "epochs" else 10)
  _ticks(axis, panel, xs)
  ys = [m.y for m in front + (paper if own else [])]
  if panel.x in ("dataset_size", "gmacs") and min(ys) > 0:
    _log_errors(axis, ys)


def _log_errors(axis, ys):
  """Sets a logarithmic y axis whose ticks are plain percentages instead of powers of ten."""
  from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

  low, high = min(ys) / 1.05, min(100, max(ys) * 1.05)
  axis.set_yscale("log")
  axis.set_ylim(low, high)
  for step in (1, 2, 5, 10, 20):
    ticks = [n for n in range(step, 101, step) if low <= n <= high]
    if len(ticks) <= 7:
      break
  axis.yaxis.set_major_locator(FixedLocator(ticks))
  axis.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
  axis.yaxis.set_minor_locator(NullLocator())
  axis.yaxis.set_minor_formatter(NullFormatter())


def _ticks(axis, panel, xs, most=6):
  """Sets up to `most` x ticks at values that were run, abbreviated as in 1.6k or 100M."""
  from matplotlib.ticker import FixedLocator, NullLocator

  if panel.x not in ("epochs", "dataset_size", "quality"):
    return
  wanted = sorted(set(xs))
  step = -(-len(wanted) // most)
  if panel.x == "epochs":
    wanted = sorted({round(x, 1) for x in wanted})
  axis.xaxis.set_major_locator(FixedLocator(wanted[::-1][::step][::-1]))
  axis.xaxis.set_minor_locator(NullLocator())
  write = {"dataset_size": lambda v, _: short(round(v)), "quality": lambda v, _: f"{v:g}%"}
  axis.xaxis.set_major_formatter(write.get(panel.x, lambda v, _: f"{v:g}"))


def _bars(axis, own, paper, style, handles):
  """Draws bars grouped by size, with the paper's in grey behind those of the same size."""
  front = own or paper
  sizes = sorted({m.x for m in front})
  names = _sorted_series(list(dict.fromkeys(m.series for m in front)))
  width, hatches = 0.8 / len(names), ("", "//", "..", "xx", "\\\\", "--", "++", "oo")
  for i, name in enumerate(names):
    line = {m.x: m for m in front if m.series == name}
    behind = {m.x: m for m in paper if m.series == name} if own else {}
    left = lambda x: sizes.index(x) + (i - (len(names) - 1) / 2) * width
    shared = [x for x in sizes if x in behind]
    axis.bar(
      [left(x) for x in shared],
      [behind[x].y for x in shared],
      width,
      color="#888888",
      alpha=PAPER_ALPHA,
    )
    handles[name] = axis.bar(
      [left(x) for x in line],
      [m.y for m in line.values()],
      width * 0.86,
      color=style[name][0],
      edgecolor="black",
      linewidth=0.4,
      hatch=hatches[i % len(hatches)],
      yerr=[m.spread for m in line.values()],
      ecolor="black",
      error_kw={"elinewidth": 0.8},
    )
  axis.set_xticks(range(len(sizes)), [short(round(x)) for x in sizes])
  axis.grid(axis="x", visible=False)


def _sorted_series(names):
  """Sorts series by size, in the paper's order, or else by name with numbers compared by value."""
  known = (*VITS, *ARCHITECTURES, *METHODS, *AUGMENTATIONS)

  def key(name):
    if name in known:
      return 1, known.index(name), name
    number = re.match(r"([\d.]+)([kMB]?)", name)
    if not number:  # ViT-32x2 before ViT-128x4.
      return 2, 0.0, re.sub(r"\d+", lambda digits: digits[0].zfill(9), name)
    return 0, float(number[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[number[2]], name

  return sorted(names, key=key)


def _page(sections, left_out):
  """The HTML page with all figures and the numbers behind them."""
  parts = [
    """<!doctype html><html lang="en"><meta charset="utf-8">
<title>The study's figures</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1d2330; }
img { max-width: 100%; } table { border-collapse: collapse; font-size: 13px; }
td, th { padding: 2px 10px; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; } summary { cursor: pointer; color: #0072B2; }
</style><h1>The study's figures</h1>
<p>Figures are numbered as in Scaling (Down) CLIP (Li, Xie, Cubuk 2024); those from 28 on are
additions. Points are means over seeds with their standard errors. Grey points are the paper's, read
off its figures. They were measured on other data, so compare the shapes of curves, not values.
</p>"""
  ]
  for data, number, name, filled in sections:
    title = f"{data}: figure {number}. {FIGURE_TITLES[number]}"
    parts.append(
      f'<h2 id="{_slug(data)}-{number}">{html.escape(title)}</h2>'
      f'<a href="{name}.svg"><img src="{name}.png" alt="{html.escape(title)}"></a>'
      "<details><summary>Show the numbers</summary>"
      + "".join(_table(*one) for one in filled)
      + "</details>"
    )
  for data, numbers in left_out.items():
    listed = ", ".join(map(str, numbers))
    parts.append(f"<p>No runs for figures {listed} on {html.escape(data)}.</p>")
  return "\n".join(parts) + "</html>\n"


def _table(panel: Panel, own: list[Mark], paper: list[Mark]) -> str:
  rows = "".join(
    f"<tr><td>{html.escape(m.series)}</td><td>{m.source}</td><td>{m.x:,.6g}</td>"
    f"<td>{m.y:.2f}</td><td>{'' if m.spread != m.spread else format(m.spread, '.2f')}</td>"
    f"<td>{m.runs}</td></tr>"
    for m in own + paper
  )
  return (
    f"<h3>{panel.figure}</h3><table><tr><th>series</th><th>source</th><th>"
    f"{html.escape(panel.label_x)}</th><th>{html.escape(panel.label_y)}</th>"
    f"<th>standard error</th><th>runs</th></tr>{rows}</table>"
  )


def _slug(text):
  return "".join(c if c.isalnum() else "-" for c in text)
