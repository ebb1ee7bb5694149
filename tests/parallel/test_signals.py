"""Ctrl-C: hidden from workers, but not from the process that waits for them."""

import gc
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import pytest

from clip_jax.parallel.signals import shield_from_sigint

BLOCKED = "print(next(l for l in open('/proc/self/status') if l.startswith('SigBlk')).split()[1])"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_only_processes_started_within_block_sigint():
  blocks = lambda: (
    int(
      subprocess.run(
        [sys.executable, "-c", BLOCKED], text=True, check=True, capture_output=True
      ).stdout,
      16,
    )
    >> signal.SIGINT - 1
    & 1
  )
  assert shield_from_sigint(blocks)
  assert not blocks()


def test_waiting_process_is_interrupted():
  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # It may have been ignored.
  gc.disable()  # An exception raised during garbage collection would be lost.
  ended = threading.Event()
  threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
  begun = time.monotonic()
  try:
    with pytest.raises(KeyboardInterrupt):
      shield_from_sigint(lambda: ended.wait(60))
  finally:
    ended.set()
    gc.enable()
    signal.signal(signal.SIGINT, before)
  assert time.monotonic() - begun < 30


def test_errors_are_passed_on():
  with pytest.raises(ZeroDivisionError):
    shield_from_sigint(lambda: 1 / 0)
