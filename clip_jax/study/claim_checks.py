"""Checks which of the paper's claims hold in your runs, by paired differences.

Runs that differ only in the factor under test are paired: same data size, samples and seed. A
difference counts if Student's t-test finds it significant at 95%; otherwise the claim is
inconclusive at this scale.
"""

from collections.abc import Iterable, Sequence
import csv
import dataclasses
from pathlib import Path

from clip_jax.cli.formatting import table
from clip_jax.errors import UserError
from clip_jax.files import atomic_write
from clip_jax.study.claims import CLAIMS
from clip_jax.study.paired_tests import MISSING
from clip_jax.study.runs_table import RunResult


@dataclasses.dataclass(frozen=True)
class ClaimCheck:
  """The result of testing one claim on one data set.

  Attributes:
    name: "S1" to "S15".
    claim: the claim.
    data: data set of the runs.
    verdict: `HOLDS`, `FAILS`, `INCONCLUSIVE` or `MISSING` of `paired_tests`.
    numbers: the differences that the verdict is based on.
  """

  name: str
  claim: str
  data: str
  verdict: str
  numbers: str


def check_claims(points: Iterable[RunResult], metric: str | None = None) -> list[ClaimCheck]:
  """Tests each claim on each data set that has the runs for it.

  Args:
    points: results of your runs.
    metric: metric for claims that do not name one; by default recall at 10, mean of both
      directions, if the data set has it, otherwise zero-shot.

  Raises:
    UserError: there are no runs.
  """
  points = list(points)
  if not points:
    raise UserError("There are no runs to test the claims on. Run a grid of configs/study first.")
  found = []
  for name, (claim, check) in CLAIMS.items():
    own = []
    for data in sorted({p.data for p in points}):
      runs = [p for p in points if p.data == data]
      main = metric or ("r10" if any(p.metric == "r10" for p in runs) else "zero_shot")
      result = check(runs, main)
      if result:
        own.append(ClaimCheck(name, claim, data, *result))
    found += own or [ClaimCheck(name, claim, "-", MISSING, "")]
  return found


def format_checks(found: Sequence[ClaimCheck]) -> str:
  """Formats the results as a table for the terminal."""
  return table(
    [(v.name, v.claim, v.data, v.verdict, v.numbers) for v in found],
    ("", "claim", "data", "verdict", "numbers"),
  )


def write_csv(found: Sequence[ClaimCheck], path: Path) -> None:
  """Writes the results to a CSV file."""
  with atomic_write(path) as file:
    writer = csv.writer(file)
    writer.writerow([f.name for f in dataclasses.fields(ClaimCheck)])
    writer.writerows(dataclasses.astuple(v) for v in found)
