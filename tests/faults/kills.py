"""Kills: at the end, the run is bit for bit the one that nothing interrupted."""

from collections.abc import Callable
import csv
from pathlib import Path
from random import Random
import re
import signal
import time

from clip_jax.pretrained.run_checkpoint import steps_in
from faults.commands import Command, Place, check_alike

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
SIGNALS = (KILL, TERM, INT)
DEVICES = (1, 2, 4, 8)
# By signal, the exit codes of a run that receives it: those documented, or done before it arrived.
# A process that Ctrl-C ends while Python exits has 130 for a shell too.
CODES = {KILL: (-KILL, 0), TERM: (75, 0), INT: (130, -INT, 0)}
# Seconds of work after which Python has started and the command handles a Ctrl-C.
STARTED = 0.15
# Calls of the point in a whole run, and the seconds that a kill may come after the call.
POINTS = {"step": (12, 0.02), "save": (6, 0.25), "evaluation": (3, 0.4)}


def during_start(place: Place, rng: Random) -> None:
  """Kills a run within its first seconds, often before there is anything in the workdir."""
  number, devices, workdir = rng.choice(SIGNALS), rng.choice(DEVICES), place.new()
  command = place.train(workdir, devices=devices)
  command.wait_for_work(rng.uniform(STARTED, 4))
  command.send(number)
  # While it starts, nothing needs saving, and SIGTERM ends the process as it ends any other.
  code = command.end(*CODES[number], -number).code
  _resume(place, workdir, devices, code)


def during(point: str) -> Callable[[Place, Random], None]:
  """Returns the rounds that kill a run at a point: a step, a save or an evaluation."""

  def attempt(place: Place, rng: Random) -> None:
    calls, delay = POINTS[point]
    devices, workdir = rng.choice(DEVICES), place.new()
    number = rng.choice(SIGNALS)
    victim = place.victim(
      point, rng.randint(1, calls), rng.uniform(0, delay), number, workdir, devices
    )
    _resume(place, workdir, devices, _check(victim, number, workdir))

  return attempt


def during_restore(place: Place, rng: Random) -> None:
  """Kills a run that resumes while it restores its checkpoint, several times."""
  devices = rng.choice(DEVICES)
  workdir, code = place.half(devices), 0
  for _ in range(rng.choice((1, 1, 2))):
    number = rng.choice(SIGNALS)
    victim = place.victim("restore", 1, rng.uniform(0, 0.5), number, workdir, devices)
    code = _check(victim, number, workdir)
    if code == 0:
      break
  _resume(place, workdir, devices, code)


def _check(victim: Command, number: int, workdir: Path) -> int:
  ended = victim.end(*CODES[number])
  if ended.code == 75:
    said = re.search(r"SIGTERM: saved at step (\d+)", ended.printed)
    assert said and max(steps_in(workdir / "checkpoints")) == int(said[1]), ended.printed
  return ended.code


def _resume(place, workdir, devices, code):
  """Runs a command again after a kill, and checks that nothing that was saved is lost."""
  saved = steps_in(workdir / "checkpoints")
  ended = place.train(workdir, devices=devices).end(0)
  if code:
    if saved and max(saved) < 12:
      assert f"from step {max(saved)} on" in ended.printed, ended.printed
    assert "damaged" not in ended.printed, ended.printed
  check_alike(workdir, place.straight(devices))


def of_two_processes(place: Place, rng: Random) -> None:
  """Signals one or both of two processes of a run at a random moment, and resumes with two."""
  devices = rng.choice((1, 2))
  straight = place.once(("pair", devices), lambda: _pair(place, devices))
  workdir, number = place.new(), rng.choice(SIGNALS)
  both = _start_pair(place, workdir, devices, rng)
  step = rng.randint(1, 10)
  metrics = workdir / "metrics.jsonl"
  both[0].wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= step)
  time.sleep(rng.uniform(0, 0.1))
  # SIGTERM to one process stops all of them. A machine dies, and a terminal stops, all at once.
  for command in both if number != TERM else rng.sample(both, rng.randint(1, 2)):
    command.send(number)
  codes = [command.end(*CODES[number]).code for command in both]
  assert len(set(codes)) == 1 or number != TERM, codes
  _pair(place, devices, workdir, rng)
  check_alike(workdir, straight)


def _start_pair(place, workdir, devices, rng):
  port = rng.randrange(20_000, 32_000)
  ranks = (f"--coordinator=127.0.0.1:{port}", "--processes=2")
  return [place.train(workdir, *ranks, f"--process={i}", devices=devices) for i in range(2)]


def _pair(place, devices, workdir=None, rng=None):
  workdir = workdir or place.new()
  for command in _start_pair(place, workdir, devices, rng or Random()):
    command.end(0)
  return workdir


def of_prepare(place: Place, rng: Random) -> None:
  """Kills `prepare`, with or without worker processes; rerun, it writes the same shards."""
  straight = place.once("prepare", lambda: run_straight(place, prepared))
  out, number, processes = place.new(), rng.choice(SIGNALS), rng.choice((1, 2))
  first = place.start(*prepared(out, processes))
  first.wait_for_work(rng.uniform(STARTED, 3))
  (first.send_to_group if number == INT else first.send)(number)
  first.end(-number, *CODES[number])
  place.start(*prepared(out, processes)).end(0)
  assert contents(out) == contents(straight)


def prepared(out: Path, processes: int = 1) -> list[str]:
  """The command that prepares records in a folder."""
  return [
    "-m",
    "clip_jax.prepare",
    "--from=tests/faults/scenes.py",
    "--format=source",
    "--records_per_shard=100",
    f"--processes={processes}",
    f"--out={out}",
  ]


def of_score(place: Place, rng: Random) -> None:
  """Kills `score`; rerun, it writes the same scores."""
  model = place.straight(1)
  straight = place.once("score", lambda: run_straight(place, scored, model))
  out, number = place.new(), rng.choice(SIGNALS)
  first = place.start(*scored(out, model))
  first.wait_for_work(rng.uniform(STARTED, 5))
  first.send(number)
  first.end(-number, *CODES[number])
  place.start(*scored(out, model)).end(0)
  assert contents(out) == contents(straight)


def scored(out: Path, model: Path) -> list[str]:
  """The command that scores records, into a folder."""
  return [
    "-m",
    "clip_jax.score",
    f"--model={model}",
    "--source=tests/faults/scenes.py",
    f"--out={out / 's.npz'}",
  ]


def of_study_run(place: Place, rng: Random) -> None:
  """Kills `study run` while it trains two runs; rerun, it writes the same rows."""
  straight = place.once("study", lambda: run_straight(place, studied))
  out, number = place.new(), rng.choice(SIGNALS)
  first = place.start(*studied(out))
  lines = rng.randint(-4, 24)  # Of both runs; negative while the grid itself starts.
  first.wait_for_work(rng.uniform(STARTED, 2))
  logs = lambda: (out / "runs").glob("*/metrics.jsonl")
  first.wait_for(lambda: sum(log.read_bytes().count(b"\n") for log in logs()) >= lines)
  first.send(number)
  first.end(*CODES[number], -number)
  place.start(*studied(out)).end(0)
  assert _rows(out) == _rows(straight)
  for run in (straight / "runs").iterdir():
    check_alike(out / "runs" / run.name, run)


def studied(out: Path) -> list[str]:
  """The command that trains the runs of a grid."""
  grid = "tests/faults/trivial_grid.py"
  return ["-m", "clip_jax.study", "run", f"--grid={grid}", f"--out={out}", "--jobs=2"]


def run_straight(place: Place, make: Callable[..., list[str]], *arguments: Path) -> Path:
  """Runs a command without interruption; returns the folder that it wrote."""
  out = place.new()
  place.start(*make(out, *arguments)).end(0)
  return out


def contents(folder: Path) -> dict[str, bytes]:
  """The files in a folder, by name."""
  return {
    str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
  }


def _rows(folder):
  with (folder / "runs.csv").open() as file:
    return [
      {name: value for name, value in row.items() if name != "wall_seconds"}
      for row in csv.DictReader(file)
    ]
