"""What a run has seen, compared with a loop over its steps; and history.json."""

import json
from pathlib import Path

import numpy as np
import pytest

from clip_jax.data.sources.shapes import Shapes
from clip_jax.data.tokenizer import ClipBpe, SentencePiece
from clip_jax.errors import UserError
from clip_jax.training.history import (
  NAME,
  History,
  Record,
  Segment,
  check_length,
  data_fingerprint,
  is_same_data,
  tokenizer_fingerprint,
)

PAST = History((Segment(0, 8, 10.0), Segment(5, 3, 10.0), Segment(7, 16, 20.0)))


def test_samples_and_flops_are_those_of_a_loop():
  samples = flops = 0
  for step in range(20):
    assert (PAST.samples(step), PAST.flops(step)) == (samples, flops)
    batch_size = 8 if step < 5 else 3 if step < 7 else 16
    samples += batch_size
    flops += batch_size * (10 if step < 7 else 20)


def test_length_in_samples_is_the_first_step_that_reaches_it():
  for samples in np.arange(0.5, 120, 0.5):
    first = next(step for step in range(100) if PAST.samples(step) >= samples)
    assert PAST.steps_for(samples) == first
  for samples, batch_size in ((100, 7), (1, 9), (9, 9)):
    assert History.new(batch_size, 1.0).steps_for(samples) == -(-samples // batch_size)


def test_resuming_forgets_what_is_done_again():
  assert PAST.resumed(9, 16, 20.0) == PAST
  assert PAST.resumed(6, 3, 10.0).segments == PAST.segments[:2]
  assert PAST.resumed(6, 4, 10.0).segments == (*PAST.segments[:2], Segment(6, 4, 10.0))
  assert PAST.resumed(7, 3, 10.0).segments == PAST.segments[:2]
  assert PAST.resumed(5, 8, 10.0).segments == PAST.segments[:1]
  assert PAST.resumed(0, 4, 1.0) == History.new(4, 1.0)


def test_run_longer_than_its_config_says_is_refused():
  check_length(PAST, 9, 9)
  with pytest.raises(UserError, match=r"made 9 steps of 78 samples .* ends it at step 8"):
    check_length(PAST, 9, 8)


def test_record_is_read_as_written(tmp_path):
  assert Record.read(tmp_path) is None
  record = Record(PAST, "data", "tokenizer")
  record.write(tmp_path)
  assert Record.read(tmp_path) == record


@pytest.mark.parametrize(
  "change",
  [
    b"",
    b"[]",
    b"\xff",
    b"[" * 10_000,
    {"format": 2},
    {"data": None, "segments": None},
    {"segments": []},
    {"segments": [{"start": 0}]},
    {"segments": [{"start": 1, "batch_size": 8, "flops": 1.0}]},
    {"segments": [{"start": 0, "batch_size": 0, "flops": 1.0}]},
    {"segments": [{"start": 0, "batch_size": True, "flops": 1.0}]},
    {"segments": [{"start": 0, "batch_size": 8, "flops": "1"}]},
    {"segments": 2 * [{"start": 0, "batch_size": 8, "flops": 1.0}]},
  ],
)
def test_damaged_record_is_one_message(tmp_path, change):
  path = Path(tmp_path / NAME)
  Record(PAST, "data", "tokenizer").write(tmp_path)
  if isinstance(change, dict):
    change = json.dumps(json.loads(path.read_text()) | change).encode()
  path.write_bytes(change)
  with pytest.raises(UserError, match=f"{NAME} (is damaged: |has format 2)"):
    Record.read(tmp_path)


class Flaky(Shapes):
  """A source of which one record cannot be read."""

  def __getitem__(self, i):
    if i == 5:
      raise OSError("no answer")
    return super().__getitem__(i)


def test_record_that_is_unreadable_for_a_while_does_not_make_other_data():
  whole, flaky = data_fingerprint(Shapes(40)), data_fingerprint(Flaky(40))
  assert whole != flaky and is_same_data(whole, flaky) and is_same_data(flaky, whole)
  assert not is_same_data(flaky, data_fingerprint(Shapes(40, seed=1)))
  assert not is_same_data(whole, "?") and not is_same_data("", whole)


def test_fingerprints_tell_data_and_tokenizers_apart():
  sources = [Shapes(40), Shapes(41), Shapes(40, seed=1), Shapes(40, noise=1.0)]
  assert len(set(map(data_fingerprint, sources))) == 4
  assert data_fingerprint(Shapes(40)) == data_fingerprint(Shapes(40))
  fingerprints = list(map(data_fingerprint, sources))
  assert all(is_same_data(a, b) == (a is b) for a in fingerprints for b in fingerprints)
  tokenizers = [
    SentencePiece(),
    SentencePiece("openclipart-1k"),
    SentencePiece(lower=False),
    SentencePiece(context_length=17),
    SentencePiece(eos=False),
    ClipBpe(context_length=16),
  ]
  assert len(set(map(tokenizer_fingerprint, tokenizers))) == 6
  assert tokenizer_fingerprint(SentencePiece()) == tokenizer_fingerprint(SentencePiece())
