"""Runs a command that sends itself a signal at a chosen point of its work.

  python tests/faults/victim.py POINT COUNT DELAY SIGNAL MODULE [arguments of the command]

The signal is sent DELAY seconds after the COUNT-th call of the function that POINT stands for.
"""

import functools
import importlib
import os
import sys
import threading

from clip_jax.cli.command import run_command

POINTS = {
  "step": "clip_jax.training.loop StepLogger.add",
  "save": "clip_jax.training.checkpoint Checkpoints.save",
  "restore": "clip_jax.training.checkpoint Checkpoints.restore",
  "evaluation": "clip_jax.training.evaluations Evaluations.run",
}


def arm(point: str, count: int, delay: float, number: int) -> None:
  """Makes this process send itself a signal at a point."""
  module, _, path = POINTS[point].partition(" ")
  owner_name, name = path.split(".")
  owner = getattr(importlib.import_module(module), owner_name)
  function, calls = getattr(owner, name), iter(range(count - 1, -1, -1))

  @functools.wraps(function)
  def armed(*args, **kwargs):
    if next(calls, -1) == 0:
      if delay:
        timer = threading.Timer(delay, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
      else:
        os.kill(os.getpid(), number)
    return function(*args, **kwargs)

  setattr(owner, name, armed)


if __name__ == "__main__":
  point, count, delay, number, module, *arguments = sys.argv[1:]
  arm(point, int(count), float(delay), int(number))
  sys.argv = [module, *arguments]
  run_command(importlib.import_module(module).main)
