"""Which of the paper's statements hold in runs: each tested by differences between like runs.

Runs that are alike but for what is tested are compared in pairs: same size, samples and seed. A
difference counts when Student's t says so with nineteen in twenty, and else it cannot be told at
this scale.
"""

from collections.abc import Iterable, Sequence
import csv
import dataclasses
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.report import table
from clip_jax.study.differences import MISSING
from clip_jax.study.records import Point
from clip_jax.study.statements import STATEMENTS


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What runs say of one statement.

  Attributes:
    statement: "S1" to "S15".
    says: what it claims.
    data: of the runs.
    verdict: `HOLDS`, `FAILS`, `UNTOLD` or `MISSING` of `differences`.
    numbers: what that rests on.
  """
  statement: str
  says: str
  data: str
  verdict: str
  numbers: str


def judge_all(points: Iterable[Point], metric: str | None = None) -> list[Verdict]:
  """A verdict on each statement from each kind of data that has runs for it.

  Args:
    points: of one's own runs.
    metric: that statements about no metric in particular are judged by; by default the retrieval at
      10 of both directions where there is one, else zero-shot.

  Raises:
    UserError: no runs.
  """
  points = list(points)
  if not points:
    raise UserError("There are no runs to judge by. Run a grid of configs/study first.")
  found = []
  for name, (says, judge) in STATEMENTS.items():
    own = []
    for data in sorted({p.data for p in points}):
      runs = [p for p in points if p.data == data]
      main = metric or ("r10" if any(p.metric == "r10" for p in runs) else "zero_shot")
      judged = judge(runs, main)
      if judged:
        own.append(Verdict(name, says, data, *judged))
    found += own or [Verdict(name, says, "-", MISSING, "")]
  return found


def text(found: Sequence[Verdict]) -> str:
  """A table for a person."""
  return table([(v.statement, v.says, v.data, v.verdict, v.numbers) for v in found],
               ("", "statement", "data", "verdict", "numbers"))


def write(found: Sequence[Verdict], path: Path) -> None:
  """The same as CSV."""
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow([f.name for f in dataclasses.fields(Verdict)])
    writer.writerows(dataclasses.astuple(v) for v in found)
