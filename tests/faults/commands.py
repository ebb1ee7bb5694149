"""Commands in processes of their own, and what is checked of each: no traceback, no hang, memory.

Everything that a round needs is in a `Place`, with its own cache of compiled programs: processes
that are killed here must not damage the cache that other runs on this machine use.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import itertools
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np

from clip_jax.pretrained.run_checkpoint import steps_in
from clip_jax.pretrained.saved_arrays import SavedArrays
from clip_jax.training.event_file import visible
from faults.trivial_run import STEPS

ROOT = Path(__file__).parents[2]
CONFIG = "tests/faults/trivial_run.py"
VICTIM = "tests/faults/victim.py"
SECONDS = 180.0  # A command that takes longer hangs.
BYTES = 2e9
TROUBLE = (
  "Traceback (most recent call last)",
  "Exception ignored in",
  "Fatal Python error",
  "Segmentation fault",
  "terminate called",
  "never retrieved",
  "UserWarning",
)


@dataclasses.dataclass(frozen=True)
class Ended:
  """A command that has ended: its exit code, negative after a signal, and all that it printed."""

  code: int
  printed: str


class Command:
  """A running command."""

  def __init__(
    self, arguments: list[str], output: Path, environment: dict[str, str], seconds: float
  ):
    self.arguments, self._output, self._end = arguments, output, time.monotonic() + seconds
    before = signal.getsignal(signal.SIGINT)
    # A child inherits that Ctrl-C is ignored, as in the background of a shell.
    if before == signal.SIG_IGN:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    with output.open("w") as out:
      self._process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    if before == signal.SIG_IGN:
      signal.signal(signal.SIGINT, before)
    self.pid = self._process.pid
    self._status: tuple[int, Any] | None = None
    self._peak = 0  # Bytes.

  def runs(self) -> bool:
    """Whether the process has not ended yet."""
    if self._status is None:
      pid, status, usage = os.wait4(self.pid, os.WNOHANG)
      if pid:
        self._status = os.waitstatus_to_exitcode(status), usage
        self._process.returncode = self._status[0]
    return self._status is None

  def wait_for_work(self, seconds: float) -> None:
    """Waits until the process has computed for some seconds, however busy the machine is."""
    ticks = os.sysconf("SC_CLK_TCK")
    stat = Path(f"/proc/{self.pid}/stat")
    self.wait_for(lambda: sum(map(int, stat.read_text().split()[13:15])) / ticks >= seconds)

  def wait_for(self, happened: Callable[[], Any]) -> None:
    """Waits until something has happened or the process has ended."""
    while self.runs() and not happened():
      self._measure()
      self._check_time()
      time.sleep(0.005)

  def send(self, number: int) -> None:
    """Sends a signal if the process still runs."""
    if self.runs():
      os.kill(self.pid, number)

  def send_to_group(self, number: int) -> None:
    """Sends a signal to the process and its children, as a terminal does."""
    if self.runs():
      os.killpg(self.pid, number)

  def end(self, *codes: int) -> Ended:
    """Waits for the end and checks how it ended; `codes` are the accepted exit codes."""
    self.wait_for(lambda: False)
    code = self._status[0]
    printed = self._output.read_text(errors="replace")
    what = f"{' '.join(self.arguments)}\nexit code {code}\n{printed[-6000:]}"
    assert code in codes, f"expected exit code {' or '.join(map(str, codes))}: {what}"
    assert not trouble(printed), f"{trouble(printed)}: {what}"
    assert self._peak < BYTES, f"{self._peak:.2e} bytes: {what}"
    return Ended(code, printed)

  def _measure(self):
    """Updates the most memory; the usage that `wait4` returns has that of this process in it."""
    with contextlib.suppress(OSError):  # It has just ended.
      for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
          self._peak = max(self._peak, 1024 * int(line.split()[1]))

  def _check_time(self):
    if time.monotonic() > self._end:
      self.send_to_group(signal.SIGKILL)
      printed = self._output.read_text(errors="replace")
      raise AssertionError(f"It hangs: {' '.join(self.arguments)}\n{printed[-6000:]}")


class Place:
  """A folder with all that rounds share: compiled programs, and runs that nothing interrupted."""

  def __init__(self, folder: Path):
    self.folder = folder
    self._numbers = itertools.count()
    self._made: dict[Any, Any] = {}
    self._commands: list[Command] = []

  def new(self) -> Path:
    """Returns the path of a new folder, which does not exist."""
    return self.folder / str(next(self._numbers))

  def once(self, what: Any, make: Callable[[], Any]) -> Any:
    """Returns what `make` returned the first time."""
    if what not in self._made:
      self._made[what] = make()
    return self._made[what]

  def start(
    self,
    *arguments: str,
    devices: int = 1,
    seconds: float = SECONDS,
    program: Sequence[str] = (sys.executable,),
  ) -> Command:
    """Starts `python ARGUMENTS`, or another program."""
    changes = {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": str(devices),
      # The order of sums depends on the number of threads, so it is the same for every run.
      "XLA_FLAGS": "",
      "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "CLIP_JAX_TIMEOUT": "60",
      "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
    }
    output = self.new().with_suffix(".log")
    command = Command([*program, *arguments], output, {**os.environ, **changes}, seconds)
    self._commands.append(command)
    return command

  def stop(self) -> None:
    """Kills the commands that still run, after a round that has failed."""
    for command in self._commands:
      command.send_to_group(signal.SIGKILL)
      command.wait_for(lambda: False)
    self._commands.clear()

  def train(self, workdir: Path, *arguments: str, devices: int = 1) -> Command:
    """Starts training in a workdir."""
    return self.start("-m", "clip_jax.train", *training(workdir, *arguments), devices=devices)

  def straight(self, devices: int) -> Path:
    """Workdir of a finished run that nothing interrupted."""

    def make():
      workdir = self.new()
      self.train(workdir, devices=devices).end(0)
      return workdir

    return self.once(("straight", devices), make)

  def half(self, devices: int) -> Path:
    """Returns a new copy of the workdir of a run that was stopped in the middle."""

    def make():
      workdir = self.new()
      command = self.victim("step", 7, 0, signal.SIGTERM, workdir, devices=devices)
      assert "SIGTERM: saved at step" in command.end(75).printed
      return workdir

    return shutil.copytree(self.once(("half", devices), make), self.new())

  def victim(
    self, point: str, count: int, delay: float, number: int, workdir: Path, devices: int = 1
  ) -> Command:
    """Starts training that sends itself a signal, see victim.py."""
    return self.start(
      VICTIM,
      *(point, str(count), f"{delay:.4f}", str(int(number)), "clip_jax.train"),
      *training(workdir),
      devices=devices,
    )


def trouble(printed: str) -> str:
  """The first sign of an error that nobody turned into a message, or ""."""
  return next((word for word in TROUBLE if word in printed), "")


def training(workdir: Path, *arguments: str) -> list[str]:
  """The arguments of the command that trains."""
  return [f"--config={CONFIG}", f"--workdir={workdir}", *arguments]


def arrays(workdir: Path, step: int = STEPS) -> dict[str, np.ndarray]:
  """All arrays of a checkpoint, by name."""
  saved = SavedArrays(workdir / "checkpoints" / str(step) / "state")
  return {name: np.asarray(x.read().result()) for name, x in saved.open(saved.names).items()}


def lines(workdir: Path) -> list[dict]:
  """The lines of metrics.jsonl without what depends on the time."""
  timed = ("train/images_per_second", "train/data_wait_fraction")
  return [
    {name: value for name, value in json.loads(line).items() if name not in timed}
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]


def check_alike(workdir: Path, straight: Path) -> None:
  """Checks that two finished runs are the same bit for bit, and left nothing unfinished."""
  ours, wanted = arrays(workdir), arrays(straight)
  assert ours.keys() == wanted.keys()
  differ = [name for name in wanted if not np.array_equal(ours[name], wanted[name])]
  assert not differ, f"{workdir}: {differ} differ from those of {straight}"
  assert lines(workdir) == lines(straight), f"{workdir}/metrics.jsonl differs from {straight}"
  shown = visible(workdir / "tensorboard")
  missing = {
    (line["step"], name)
    for line in lines(workdir)
    for name in line
    if name != "step" and (line["step"], name) not in shown
  }
  assert not missing, f"{workdir}/tensorboard lacks {sorted(missing)}"
  names = lambda folder: {path.name for path in folder.iterdir()}
  assert names(workdir) == names(straight), f"files in {workdir}: {sorted(names(workdir))}"
  # A signal saves at a step of its own, but the number of checkpoints is the same.
  steps, kept = (steps_in(folder / "checkpoints") for folder in (workdir, straight))
  assert (steps[-1], len(steps)) == (kept[-1], len(kept)), f"{workdir}: {steps} instead of {kept}"
  assert names(workdir / "checkpoints") == set(map(str, steps))
