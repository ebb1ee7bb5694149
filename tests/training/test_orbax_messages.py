"""Messages of Orbax are dropped while a run saves; nothing else is, and nothing stays changed."""

import logging
import sys
import threading
import time

from clip_jax.training.orbax_messages import dropped


def settings():
  hooks = [vars(sys)[name] for name in ("excepthook", "unraisablehook")]
  return hooks, [dict(vars(logging.getLogger(name))) for name in ("absl", "asyncio")]


def test_only_messages_of_orbax_are_dropped(caplog):
  code = compile("log('one array failed')", "/site-packages/orbax/checkpoint/save.py", "exec")
  logger = logging.getLogger("absl")
  before = settings()
  with dropped():
    with dropped():
      exec(code, {"log": logger.error})
    exec(code, {"log": logger.error})
    logger.error("something else")
    logging.getLogger("asyncio").error("Task of orbax was destroyed")
  assert [record.getMessage() for record in caplog.records] == ["something else"]
  assert settings() == before
  exec(code, {"log": logger.error})
  assert caplog.records[-1].getMessage() == "one array failed"


def test_late_callbacks_of_tensorstore_are_dropped(monkeypatch):
  seen = []
  monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: seen.append(str(error)))
  with dropped():
    for text in ("Event loop is closed", "a bug"):
      sys.excepthook(RuntimeError, RuntimeError(text), None)
  assert seen == ["a bug"]


def test_an_error_that_a_thread_of_orbax_logs_late_is_dropped(caplog):
  code = compile("log('no space left')", "/site-packages/orbax/checkpoint/save.py", "exec")

  class Late(threading.Thread):
    __module__ = "orbax.checkpoint.futures"

    def run(self):
      time.sleep(0.2)
      exec(code, {"log": logging.getLogger("absl").error})

  with dropped():
    Late().start()
  assert caplog.records == []
