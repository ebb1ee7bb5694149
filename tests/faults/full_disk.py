"""Full disks: one message, nothing that was saved is lost, and with space the run ends the same.

With the right to mount, also an unprivileged one in a namespace of its own, the disk is a small
tmpfs. Elsewhere a limit on the size of files makes writes fail with another error of that kind.
"""

from pathlib import Path
from random import Random
import re
import shutil
import subprocess
import sys

from faults.commands import Place, check_alike, training, trouble
from faults.kills import contents, prepared, run_straight, scored
from faults.rounds import Unavailable

# Runs a command on a disk of SIZE KiB, then again with enough space, and copies what it wrote.
SMALL_DISK = """
set -u
disk=$1 size=$2 out=$3
shift 3
mount -t tmpfs -o size="${size}k" none "$disk" || exit 99
"$@" > "$out/first.log" 2>&1
echo $? > "$out/first.code"
mount -o remount,size=1g "$disk" || exit 99
"$@"
code=$?
cp -r "$disk/out" "$out/out"
exit $code
"""
LIMITED = """
set -u
size=$1 out=$2
shift 2
(ulimit -f "$size" && exec "$@") > "$out/first.log" 2>&1
echo $? > "$out/first.code"
exec "$@"
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
  """Whether this user may mount a tmpfs in a namespace of its own."""
  test = [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"]
  return bool(shutil.which("unshare")) and not subprocess.run(test, capture_output=True).returncode


def commands(place: Place, out: Path) -> dict:
  """By name: the command that writes to `out`, the most KiB that it needs, and its check."""
  return {
    "train": (
      ["-m", "clip_jax.train", *training(out)],
      1400,
      lambda made: check_alike(made, place.straight(1)),
    ),
    "prepare": (
      prepared(out),
      1500,
      lambda made: _check_contents(
        made, place.once("prepare", lambda: run_straight(place, prepared))
      ),
    ),
    "score": (
      scored(out, place.straight(1)),
      40,
      lambda made: _check_contents(
        made, place.once("score", lambda: run_straight(place, scored, place.straight(1)))
      ),
    ),
  }


def _check_contents(made, straight):
  assert contents(made) == contents(straight)


def on_a_small_disk(place: Place, rng: Random) -> None:
  """Fills a tmpfs of random size."""
  if not place.once("can mount", can_mount):
    raise Unavailable("this user may not mount a tmpfs")
  disk, kept = place.new(), place.new()
  disk.mkdir(), kept.mkdir()
  arguments, most, check = commands(place, disk / "out")[_any_command(rng)]
  size = rng.randint(4, most)
  shell = [*NAMESPACE, "sh", "-c", SMALL_DISK, "sh", str(disk), str(size), str(kept)]
  place.start(sys.executable, *arguments, program=shell).end(0)
  _check_first(kept)
  check(kept / "out")


def with_a_limit(place: Place, rng: Random) -> None:
  """Lets writes fail in files that are longer than a random limit."""
  out, kept = place.new(), place.new()
  kept.mkdir()
  arguments, most, check = commands(place, out)[_any_command(rng)]
  size = rng.randint(1, most // 4)
  shell = ["bash", "-c", LIMITED, "bash", str(size), str(kept)]
  place.start(sys.executable, *arguments, program=shell).end(0)
  _check_first(kept)
  check(out)


def _any_command(rng):
  return rng.choice(("train", "train", "prepare", "score"))


def _check_first(kept):
  code, printed = int((kept / "first.code").read_text()), (kept / "first.log").read_text()
  what = f"exit code {code}\n{printed[-6000:]}"
  assert code in (0, 2), what
  assert not trouble(printed), what
  if code:
    said = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and re.search("No space left|The disk is full", said[0]), what
