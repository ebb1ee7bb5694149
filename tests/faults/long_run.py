"""A run of many steps needs no more memory, threads or open files at its end than early on."""

import os
from pathlib import Path
from random import Random
import re

from faults.commands import Place

STEPS = 20_000


def of_many_steps(place: Place, rng: Random, steps: int = STEPS) -> None:
  """Trains a trivial run, with saves and evaluations, and looks at the process all the while."""
  workdir = place.new()
  command = place.start(
    "-m",
    "clip_jax.train",
    f"--config=tests/faults/trivial_run.py:{steps}",
    f"--workdir={workdir}",
    f"--config.train.log_every={steps // 200}",
    f"--config.train.save_every={max(steps // 20, 100)}",
    f"--config.train.eval_every={steps // 4}",
    f"--config.seed={rng.randrange(1000)}",
    seconds=1800,
  )
  log, seen = workdir / "metrics.jsonl", {}
  logged = lambda: log.read_bytes().count(b"\n") if log.exists() else 0

  def look():
    if (n := logged()) and n not in seen:
      seen[n] = usage(command.pid)
    return False

  command.wait_for(look)
  command.end(0)
  # From the first evaluation on, in two halves. A short run has not allocated all that it needs.
  later = [seen[n] for n in sorted(seen) if n > 60]
  half = len(later) // 2
  early, late = later[:half], later[half:]
  assert half >= 5, f"only {len(later)} observations"
  for what, slack in {"bytes": 20e6 if steps == STEPS else 1e8, "threads": 2, "files": 2}.items():
    before, after = (max(one[what] for one in part) for part in (early, late))
    assert after <= before + slack, f"{what} grew from {before:,} to {after:,}"


def usage(pid: int) -> dict[str, int]:
  """Memory, threads and open files of a process."""
  status = Path(f"/proc/{pid}/status").read_text()
  value = lambda name: int(re.search(rf"{name}:\s+(\d+)", status)[1])
  files = len(os.listdir(f"/proc/{pid}/fd"))
  return {"bytes": 1024 * value("VmRSS"), "threads": value("Threads"), "files": files}
