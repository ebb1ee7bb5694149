"""Tests of the paper's numbers, and of reading and writing runs.csv."""

import csv
import math

import pytest

from clip_jax.errors import UserError
from clip_jax.study import runs_table


def find(figure, **factors):
  return [
    p.error
    for p in runs_table.paper_results()
    if p.where == figure and all(getattr(p, name) == value for name, value in factors.items())
  ]


def test_paper_numbers_match_the_readings():
  """Compares one number from each kind of figure with the notes taken when reading it."""
  million = 10**6
  assert find("2a", dataset_size=25 * million, samples_seen=800 * million) == [69.7]
  assert find("5b", quality=40.0) == [34.4] and find("5a", quality=100.0) == [39.7]
  assert find("8b", arch="ViT-L/16", dataset_size=3400 * million) == [28.5]
  assert find("8a", arch="ViT-B/32", dataset_size=3400 * million) == [39.7]
  assert find("9a", arch="ViT-B/16", dataset_size=25 * million) == [59.2]
  assert find("13a", arch="Swin-T", dataset_size=10 * million) == [81.3]
  assert find("1b", aug="stacked RandAugment", dataset_size=50 * million) == [48.8]
  assert find("17a", method="SLIP", dataset_size=10 * million) == [74.4]
  assert find("19b", method="FLIP", dataset_size=3400 * million) == [60.5]


def test_figures_agree_about_the_same_run():
  errors = [
    p.error
    for p in runs_table.paper_results()
    if p.metric == "zero_shot"
    and p.arch == "ViT-B/32"
    and p.method == "CLIP"
    and p.quality == 100
    and p.dataset_size == p.samples_seen == 3_400_000_000
  ]
  assert len(errors) >= 5 and max(errors) - min(errors) <= 0.2


def test_every_paper_number_has_a_precision_and_a_source():
  for p in runs_table.paper_results():
    assert 0 < p.error <= 100 and 0.1 <= p.precision <= 1 and p.how.startswith("digitised")
    assert p.metric in runs_table.TITLES and p.epochs >= 0.99


def row(**changes):
  return {
    "name": "a",
    "data": "d",
    "protocol": "one epoch",
    "arch": "A",
    "method": "CLIP",
    "aug": "none",
    "dataset_size": "100",
    "quality": "100.0",
    "samples_seen": "200",
    **changes,
  }


def test_rows_become_points_including_the_available_means(tmp_path):
  runs_table.write_rows(
    tmp_path / "runs.csv", [row(i2t_r10="40", t2i_r10="60", seed="3", forward_gmacs="0.5", extra=1)]
  )
  points = {p.metric: p for p in runs_table.read_results(tmp_path)}
  assert points["r10"].error == 50 and points["i2t_r10"].error == 60
  assert points["r10"].epochs == 2 and points["r10"].gmacs == 100 and points["r10"].seed == 3
  assert "variants" not in points
  header = next(csv.reader((tmp_path / "runs.csv").open()))
  assert header[0] == "name" and header[-1] == "extra"


def test_missing_files_and_columns_are_reported(tmp_path):
  with pytest.raises(UserError, match="no .*runs.csv"):
    runs_table.read_results(tmp_path)
  (tmp_path / "runs.csv").write_text("name,data\na,b\n")
  with pytest.raises(UserError, match="has no column protocol, arch"):
    runs_table.read_results(tmp_path)


def test_nan_metrics_are_skipped():
  assert runs_table.results_of([row(zero_shot=str(math.nan))]) == []
