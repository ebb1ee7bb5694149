"""Batches of the tests of worker processes, in a module that a new process can import."""

import os

import numpy as np

from clip_jax.errors import UserError


def numbered(worker, workers, *, size=10, last=None):
  """Batches that say which one they are and who made them; an error after the last one."""
  i = worker
  while last is None or i <= last:
    yield {
      "number": np.full(size, i),
      "process": np.array([os.getpid()]),
      "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
      "scalar": np.array(3, np.int16),
      "none": np.zeros((0, 2)),
      "text": np.array(["a", "bc"], object),
    }
    i += workers
  raise UserError("the source is empty")


def large(worker, workers):
  return numbered(worker, workers, size=4_000_000)


def short(worker, workers):
  return numbered(worker, workers, last=2)
