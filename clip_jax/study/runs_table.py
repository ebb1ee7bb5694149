"""Results of runs: reads and writes runs.csv, and loads the paper's numbers in the same form."""

from collections.abc import Iterable, Mapping
import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.files import atomic_write

# ImageNet variants with a distribution shift, as in the paper's Figures 20 to 27.
SHIFTED = ("A", "R", "Sketch", "V2", "ReaL", "ObjectNet")
# Columns of runs.csv with accuracies in percent -> their titles in plots and tables.
METRICS = {
  "zero_shot": "zero-shot",
  **{f"zero_shot_{name}": f"zero-shot {name}" for name in SHIFTED},
  "shot5": "5-shot",
  "shot10": "10-shot",
  "linear_probe": "linear probe",
  **{f"linear_probe_{name}": f"linear probe {name}" for name in SHIFTED},
  "i2t_r1": "image-to-text R@1",
  "t2i_r1": "text-to-image R@1",
  "i2t_r10": "image-to-text R@10",
  "t2i_r10": "text-to-image R@10",
}
# Means over several columns -> (title, columns). A run has the mean if it has all of the columns.
MEANS = {
  "variants": ("zero-shot, mean of shifted sets", tuple(f"zero_shot_{n}" for n in SHIFTED)),
  "variants5": (
    "zero-shot, mean of shifted sets without ReaL",
    tuple(f"zero_shot_{n}" for n in SHIFTED if n != "ReaL"),
  ),
  "linear_probe_shifted": (
    "linear probe, mean of shifted sets",
    tuple(f"linear_probe_{n}" for n in SHIFTED),
  ),
  "r10": ("R@10, mean of both directions", ("i2t_r10", "t2i_r10")),
}
TITLES = METRICS | {name: title for name, (title, _) in MEANS.items()}
COLUMNS = (
  "name",
  "data",
  "protocol",
  "arch",
  "method",
  "aug",
  "dataset_size",
  "quality",
  "samples_seen",
  "epochs",
  "steps",
  "seed",
  "forward_gmacs",
  "image_gmacs",
  "text_gmacs",
  "train_flops",
  "parameters",
  *METRICS,
  "wall_seconds",
  "fingerprint",
  "commit",
  "version",
  "device",
)
REFERENCE = Path(__file__).parent / "reference"


@dataclasses.dataclass(frozen=True)
class RunResult:
  """The error of one run by one metric.

  Attributes:
    data, protocol, arch, method, aug, quality: the factors of the run, as in `grid.Run`.
    dataset_size: number of distinct training examples, after the quality cut.
    samples_seen: number of training examples seen, counting repetitions.
    forward_gmacs: 1e9 forward multiply-adds per example; NaN if unknown.
    metric: a name in `TITLES`.
    error: 100 - accuracy, in percent.
    seed: random seed of the run.
    where: name of the run, or number of the paper's figure.
    precision: uncertainty of a number read off a figure, ± percentage points; 0 if measured.
    how: "measured", or how the number was read off the figure.
  """

  data: str
  protocol: str
  arch: str
  method: str
  aug: str
  quality: float
  dataset_size: int
  samples_seen: int
  forward_gmacs: float
  metric: str
  error: float
  seed: int = 0
  where: str = ""
  precision: float = 0.0
  how: str = "measured"

  @property
  def epochs(self) -> float:
    """Number of times that each example was seen."""
    return self.samples_seen / self.dataset_size

  @property
  def gmacs(self) -> float:
    """1e9 forward multiply-adds over the whole run, the paper's measure of compute."""
    return self.forward_gmacs * self.samples_seen


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes runs.csv atomically, with extra columns after those in `COLUMNS`."""
  rows = list(rows)
  more = sorted({name for row in rows for name in row} - set(COLUMNS))
  with atomic_write(path) as file:
    writer = csv.DictWriter(file, [*COLUMNS, *more], restval="")
    writer.writeheader()
    writer.writerows(rows)


def read_rows(path: Path | str) -> list[dict[str, str]]:
  """Reads the rows of a runs.csv, or of the one in a folder, as strings.

  Raises:
    UserError: the file does not exist, or lacks a column that identifies the runs.
  """
  path = Path(path)
  if path.is_dir():
    path = path / "runs.csv"
  if not path.is_file():
    raise UserError(f"There is no {path}. python -m clip_jax.study run writes it to --out.")
  with path.open(newline="", encoding="utf-8") as file:
    reader = csv.DictReader(file)
    missing = [name for name in COLUMNS[:9] if name not in (reader.fieldnames or ())]
    if missing:
      raise UserError(
        f"{path} has no column {', '.join(missing)}; it needs "
        f"{', '.join(COLUMNS[:9])} and any of {', '.join(METRICS)}."
      )
    return list(reader)


def results_of(rows: Iterable[Mapping[str, str]]) -> list[RunResult]:
  """Converts rows of runs.csv to points, including the means in `MEANS`."""
  points = []
  for row in rows:
    values = {name: float(row[name]) for name in METRICS if row.get(name) not in (None, "")}
    for name, (_, parts) in MEANS.items():
      if all(part in values for part in parts):
        values[name] = float(np.mean([values[part] for part in parts]))
    points += [
      RunResult(
        data=row["data"],
        protocol=row["protocol"],
        arch=row["arch"],
        method=row["method"],
        aug=row["aug"],
        quality=float(row["quality"]),
        dataset_size=int(float(row["dataset_size"])),
        samples_seen=int(float(row["samples_seen"])),
        forward_gmacs=float(row.get("forward_gmacs") or math.nan),
        metric=metric,
        error=100 - value,
        seed=int(row.get("seed") or 0),
        where=row["name"],
      )
      for metric, value in values.items()
      if math.isfinite(value)
    ]
  return points


def read_results(path: Path | str) -> list[RunResult]:
  """Reads the points of a runs.csv, or of the one in a folder."""
  return results_of(read_rows(path))


def paper_results() -> list[RunResult]:
  """Loads all numbers that could be read off the paper's figures.

  Source: Li, Xie, Cubuk 2024; `reference/README.md` describes how they were read.
  """
  with (REFERENCE / "paper.csv").open(newline="", encoding="utf-8") as file:
    return [
      RunResult(
        data="webli",
        protocol=row["protocol"],
        arch=row["arch"],
        method=row["method"],
        aug=row["aug"],
        quality=float(row["quality"]),
        dataset_size=int(row["dataset_size"]),
        samples_seen=int(row["samples_seen"]),
        forward_gmacs=float(row["forward_gmacs"] or math.nan),
        metric=row["metric"],
        error=float(row["error"]),
        where=row["figure"],
        precision=float(row["precision"]),
        how=row["how"],
      )
      for row in csv.DictReader(file)
    ]
