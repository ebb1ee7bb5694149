"""A kill during a save; the slow tests send all signals, at all other moments."""

from random import Random
import shutil
import signal

import numpy as np
import pytest

from faults import commands, kills
from faults.commands import Place, check_alike
from faults.kinds import GROUPS, attempts
from faults.rounds import random_of


class Killing(Random):
  """Random numbers for rounds on one device, with SIGKILL."""

  def choice(self, among):
    return signal.SIGKILL if among is kills.SIGNALS else among[0]


def test_a_run_that_is_killed_during_a_save_ends_like_one_that_is_not(tmp_path, monkeypatch):
  place = Place(tmp_path)
  kills.during("save")(place, Killing(5))
  check_that_differences_are_found(place.straight(1), tmp_path / "copy", monkeypatch)


def check_that_differences_are_found(straight, copy, monkeypatch):
  """So that `check_alike`, on which all rounds depend, can fail."""
  shutil.copytree(straight, copy)
  check_alike(copy, straight)
  log = copy / "metrics.jsonl"
  text = log.read_text()
  log.write_text(text.replace('"step": 7', '"step": 8'))
  with pytest.raises(AssertionError, match="metrics.jsonl differs"):
    check_alike(copy, straight)
  log.write_text(text)
  (copy / ".trainer.lock.tmp").touch()
  with pytest.raises(AssertionError, match="trainer.lock.tmp"):
    check_alike(copy, straight)
  (copy / ".trainer.lock.tmp").unlink()
  events = next((copy / "tensorboard").iterdir())
  events.write_bytes(events.read_bytes()[:200])
  with pytest.raises(AssertionError, match="tensorboard lacks"):
    check_alike(copy, straight)
  real, name = commands.arrays, "params/model/image/embedding/kernel"

  def changed(workdir):
    found = real(workdir)
    if workdir == copy:
      found[name] = np.nextafter(found[name], 1)
    return found

  monkeypatch.setattr(commands, "arrays", changed)
  with pytest.raises(AssertionError, match=f"{name}.* differ"):
    check_alike(copy, straight)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GROUPS["kills"])
def test_kills_at_random_are_survived(kind, tmp_path):
  place = Place(tmp_path)
  for round_ in range(3):
    attempts()[kind](place, random_of(kind, 100, round_))
