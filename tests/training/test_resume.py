"""Runs that resume with another config in the same workdir."""

import json

import pytest

from clip_jax.errors import UserError
from clip_jax.training import loop as loop_lib, resume
from run_config import get_config


def short(**changes):
  config = get_config("4")
  config.evaluators = config.final_evaluators = {}
  config.train.update(steps=None, samples=128, save_every=0, log_every=1)
  for name, value in changes.items():
    section, _, field = name.partition("__")
    config[section][field] = value
  return config


def lines_of(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_run_resumes_with_another_batch_size_and_counts_what_it_has_seen(tmp_path, capsys):
  assert loop_lib.run(short(), tmp_path) == 0
  assert "changed" not in capsys.readouterr().out
  assert loop_lib.run(short(data__batch_size=16, train__samples=160), tmp_path) == 0
  printed = capsys.readouterr().out
  assert "changed    data.batch_size: 32 -> 16\n" in printed
  assert "changed    train.samples: 128 -> 160\n" in printed
  assert printed.count("changed    ") == 2 and "160 samples" in printed
  lines = lines_of(tmp_path)
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
  seen = [32, 64, 96, 128, 144, 160]
  assert [line["train/epoch"] for line in lines] == [n / 4562 for n in seen]
  flops = lines[0]["train/flops"] / 32
  assert lines[3]["train/flops"] == pytest.approx(128 * flops)
  # The loss compares fewer pairs in a smaller batch, so an example costs a little less.
  assert lines[5]["train/flops"] == pytest.approx(160 * flops, rel=1e-2)
  segments = json.loads((tmp_path / "history.json").read_text())["segments"]
  assert [(one["start"], one["batch_size"]) for one in segments] == [(0, 32), (4, 16)]

  before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
  for changes, message in (
    (dict(data__size="50%"), 'trained with another training data: data.size: null -> "50%"'),
    (dict(train__samples=100), "has made 6 steps of 160 samples in total, .* ends it at step 4"),
    (dict(model__mean=(0.0, 0.0, 0.0)), "has another model: model.mean: "),
    (dict(model__embed_dim=16), "(?s)is of a different model.*--config.train.init_from"),
  ):
    with pytest.raises(UserError, match=message):
      loop_lib.run(short(**changes), tmp_path)
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before

  (tmp_path / "history.json").unlink()  # As in a run of an earlier version.
  setup = loop_lib.build_setup(short(data__batch_size=16, train__samples=176))
  record = resume.new_record(setup)
  with loop_lib.contextlib.closing(loop_lib.Checkpoints(tmp_path / "checkpoints")) as checkpoints:
    setup, record, _, _ = resume.resume(setup, record, checkpoints, tmp_path)
  assert setup.history.samples(6) == 6 * 16 and record.data and record.tokenizer
