"""What all commands share: Ctrl-C."""

import gc
import signal
import time
import weakref

import pytest

from clip_jax.cli.command import _on_ctrl_c


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
