"""Tests of the figures: the marks of a panel, the image files, and the HTML page."""

import builtins
import math

from PIL import Image
import pytest

from clip_jax.errors import UserError
from clip_jax.study import plots, runs_table
from clip_jax.study.panels import FIGURE_TITLES, PANELS, marks
from clip_jax.study.runs_table import RunResult

PANEL = {panel.figure: panel for panel in PANELS}


def point(size, error, *, protocol="same samples", seen=1000, seed=0, **changes):
  return RunResult(
    **{
      **dict(
        data="mine",
        protocol=protocol,
        arch="ViT-x",
        method="CLIP",
        aug="none",
        quality=100.0,
        dataset_size=size,
        samples_seen=seen,
        forward_gmacs=0.1,
        metric="zero_shot",
        error=error,
        seed=seed,
        where=f"{size}-{seed}-{changes}",
      ),
      **changes,
    }
  )


def test_every_figure_of_the_paper_has_panels():
  assert {panel.number for panel in PANELS} == set(FIGURE_TITLES) and set(range(1, 28)) <= set(
    FIGURE_TITLES
  )
  drawn = {p.where for p in runs_table.paper_results()}
  assert drawn <= set(PANEL), "every number of the paper needs a panel"
  for figure in drawn:
    paper = [p for p in runs_table.paper_results() if p.where == figure]
    assert {p.metric for p in paper} == {PANEL[figure].metric}, figure
    assert len(marks(PANEL[figure], paper, "paper")) == len(paper), figure


def test_seeds_are_averaged_with_a_standard_error():
  found = marks(PANEL["9a"], [point(100, 40, seed=0), point(100, 44, seed=1), point(200, 30)], "m")
  assert [(m.x, m.y, m.runs) for m in found] == [(100, 42, 2), (200, 30, 1)]
  assert found[0].spread == pytest.approx(2) and math.isnan(found[1].spread)


def test_one_epoch_of_the_largest_size_counts_as_same_samples():
  points = [
    point(100, 40),
    point(1000, 30, protocol="one epoch"),
    point(500, 35, protocol="one epoch", seen=500),
  ]
  assert [m.x for m in marks(PANEL["9a"], points, "m")] == [100, 1000]


def test_panels_select_their_runs():
  points = [
    point(100, 40),
    point(100, 38, method="SLIP"),
    point(100, 37, arch="ResNet-x"),
    point(60, 36, quality=60.0),
  ]
  series = lambda figure: {m.series for m in marks(PANEL[figure], points, "m")}
  assert series("9a") == {"ViT-x"} and series("13a") == {"ViT-x", "ResNet-x"}
  assert series("17a") == {"CLIP", "SLIP"} and series("8b") == set()
  assert [m.x for m in marks(PANEL["5b"], points, "m")] == [60, 100]


def test_a_single_point_is_not_drawn_without_points_of_the_paper(tmp_path):
  # The paper has no numbers of this metric.
  lone = [point(100, 40, metric="r10", seen=100, protocol="one epoch")]
  with pytest.raises(UserError, match="None of the paper's figures can be drawn"):
    plots.draw_all(lone, tmp_path)
  two = [*lone, point(200, 30, metric="r10", seen=200, protocol="one epoch")]
  assert plots.draw_all(two, tmp_path) > 0


def test_shifted_sets_are_plotted_against_accuracy_of_the_same_run():
  points = [
    point(100, 40, where="a"),
    point(100, 70, metric="zero_shot_A", where="a"),
    point(200, 60, metric="zero_shot_A", where="b"),
  ]
  assert [(m.x, m.y) for m in marks(PANEL["21a"], points, "m")] == [(60, 30)]


def test_figures_and_page_are_written(tmp_path):
  pytest.importorskip("matplotlib")
  points = [
    point(size, 100 / math.log(size) + seed, seed=seed, arch=arch)
    for size in (100, 200, 400)
    for seed in (0, 1)
    for arch in ("ViT-x", "ResNet-x")
  ]
  assert plots.draw_all(points, tmp_path) == 2
  page = (tmp_path / "index.html").read_text()
  for name in ("mine/figure-09", "mine/figure-13"):
    assert Image.open(tmp_path / f"{name}.png").width > 400
    assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    assert f'src="{name}.png"' in page
  assert "ResNet-x" in page and "<td>paper</td>" in page and "No runs for figures 1, 2" in page


def test_nothing_to_draw_is_an_error(tmp_path):
  pytest.importorskip("matplotlib")
  with pytest.raises(UserError, match="None of the paper's figures can be drawn"):
    plots.draw_all(
      [point(100, 40, metric="shot5", protocol="one epoch", arch="x", method="SLIP")], tmp_path
    )


def test_missing_matplotlib_is_reported_with_the_install_command(tmp_path, monkeypatch):
  real = builtins.__import__

  def without(name, *rest, **more):
    if name.split(".")[0] == "matplotlib":
      raise ImportError(name)
    return real(name, *rest, **more)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(UserError, match=r"pip install 'scaling-clip-jax\[figures\]'"):
    plots.draw_all([], tmp_path)


def test_series_are_sorted_by_size():
  assert plots._sorted_series(
    ["ViT-128x4", "100M", "ViT-32x2", "1.6k", "ViT-B/32", "ViT-Ti/16"]
  ) == [
    "1.6k",
    "100M",
    "ViT-Ti/16",
    "ViT-B/32",
    "ViT-32x2",
    "ViT-128x4",
  ]


def test_drawing_leaves_the_settings_of_matplotlib_as_they_are(tmp_path, monkeypatch):
  import matplotlib
  from matplotlib import pyplot

  monkeypatch.setitem(matplotlib.rcParams, "font.size", 21.0)
  before = dict(matplotlib.rcParams)
  plots.draw_all([], tmp_path)
  assert dict(matplotlib.rcParams) == before
  assert not pyplot.get_fignums()
