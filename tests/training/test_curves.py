"""Tests of the curves of a run."""

import json
import sys

from PIL import Image
import pytest

from clip_jax.errors import UserError
from clip_jax.training.curves import panels, save_curves
from clip_jax.training.metrics import read_metrics

LINES = [
  {"step": 1, "train/loss": 3.0, "train/data_wait_fraction": 0.5, "train/learning_rate": 0.1},
  {"step": 5, "train/loss": None, "train/clip/image_to_text_accuracy": 0.25},
  {"step": 9, "train/loss": 1.0, "train/clip/image_to_text_accuracy": 0.5},
  {"step": 9, "val/image_to_text_r10": 20.0, "zero_shot/top1": 30.0},
  {"step": 10, "val/image_to_text_r10": 40.0},
]


@pytest.fixture
def run(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
  return tmp_path


def test_panels_have_the_curves_of_their_metrics_in_their_units(run):
  found = dict(panels(read_metrics(run)))
  assert list(found) == ["loss", "accuracy in the batch (%)", "recall at 10, held out (%)"]
  steps, values = found["loss"]["loss"]
  assert steps == [1, 5, 9] and (values[0], values[2]) == (3, 1) and values[1] != values[1]
  assert found["accuracy in the batch (%)"] == {"image to text": ([5, 9], [25, 50])}
  assert found["recall at 10, held out (%)"] == {"val: image to text": ([9, 10], [20, 40])}


def test_the_figure_is_drawn_without_changing_matplotlib_for_others(run):
  matplotlib = pytest.importorskip("matplotlib")
  pytest.importorskip("matplotlib.figure")
  before = dict(matplotlib.rcParams)
  path = save_curves(run)
  with Image.open(path) as image:
    assert path == run / "curves.png" and image.width > 2.5 * image.height
  assert dict(matplotlib.rcParams) == before


def test_a_folder_without_metrics_is_an_error(tmp_path):
  pytest.importorskip("matplotlib")
  with pytest.raises(UserError, match="There is no"):
    save_curves(tmp_path)


def test_without_matplotlib_or_curves_nothing_is_drawn(run, monkeypatch):
  (run / "metrics.jsonl").write_text(json.dumps(LINES[0]) + "\n")
  assert save_curves(run) is None
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
  assert save_curves(run) is None and not (run / "curves.png").exists()
