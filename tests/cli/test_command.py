"""What all commands share: Ctrl-C, and full disks."""

import errno
import gc
import logging
import os
import signal
import time
import warnings
import weakref

import pytest

from clip_jax.cli.command import _on_ctrl_c, run_command


@pytest.fixture(autouse=True)
def handler():
  before = signal.signal(signal.SIGINT, _on_ctrl_c)
  yield
  signal.signal(signal.SIGINT, before)


class Finalized:
  def __del__(self):
    signal.raise_signal(signal.SIGINT)


def interrupted(phase, _info):
  if phase == "start":
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_raises_where_it_arrives():
  with pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_a_finalizer_raises_a_moment_later():
  with pytest.raises(KeyboardInterrupt):
    one = Finalized()
    del one
    time.sleep(10)


def test_ctrl_c_in_a_callback_of_the_garbage_collector_raises_a_moment_later():
  with pytest.raises(KeyboardInterrupt):
    gc.callbacks.append(interrupted)
    try:
      gc.collect()
    finally:
      gc.callbacks.remove(interrupted)
    time.sleep(10)


def test_ctrl_c_in_the_callback_of_an_import_raises_a_moment_later():
  made = {}
  source = "def cb(ref): signal.raise_signal(signal.SIGINT)"
  exec(compile(source, "<frozen importlib._bootstrap>", "exec"), {"signal": signal}, made)
  with pytest.raises(KeyboardInterrupt):
    one = type("Plain", (), {})()
    weak = weakref.ref(one, made["cb"])
    del one
    time.sleep(10)
  assert weak() is None


@pytest.mark.parametrize(
  "error, code",
  [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.npz"), 2),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 2),
    (RuntimeError("write() failed: File too large; writing x.array_record; at byte 58368"), 2),
    (OSError("1024 requested and 992 written"), 2),  # As NumPy's tofile raises it.
    (OSError(errno.EACCES, os.strerror(errno.EACCES)), 1),
    (RuntimeError("No space"), 1),
  ],
  ids=str,
)
def test_a_full_disk_is_one_message(monkeypatch, capsys, error, code):
  def main(arguments):
    raise error

  monkeypatch.setattr("sys.argv", ["x"])
  monkeypatch.setattr(os, "environ", dict(os.environ))
  monkeypatch.setattr(logging.Logger, "setLevel", lambda *_: None)
  with warnings.catch_warnings(), pytest.raises(SystemExit) as raised:
    run_command(main)
  printed = capsys.readouterr().err
  assert raised.value.code == code and ("Traceback" in printed) == (code == 1)
  assert code == 1 or printed.startswith(f"error: The disk is full: {error}\nFree some space")
