"""The folder of the tables that come with the package, and their digest."""

import csv
import hashlib
from pathlib import Path

REFERENCE = Path(__file__).parent / "reference"
# The tables with evidence for the pooled law.
EVIDENCE_TABLES = (
  "paper.csv",
  "tuned_runs.csv",
  "tuned_models.csv",
  "openclip_laion.csv",
  "related_work.csv",
)


def read_table(name: str) -> list[dict[str, str]]:
  """Rows of a table of the package by column."""
  with (REFERENCE / name).open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def digest(names: tuple[str, ...] = EVIDENCE_TABLES) -> str:
  """SHA-256 of some tables, which changes with any number in them."""
  total = hashlib.sha256()
  for name in names:
    total.update(name.encode() + b"\0" + (REFERENCE / name).read_bytes())
  return total.hexdigest()
