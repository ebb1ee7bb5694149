"""The loop in this process: errors before anything expensive, damaged records, other meshes."""

import json

import numpy as np
import pytest

from clip_jax import loop, parts
from clip_jax.config import build, call
from clip_jax.data import Subset
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.errors import UserError
from clip_jax.experiment import Training
from clip_jax.schedules import warmup_constant
from run_config import get_config


class Damaged:
  """A source some of whose records are cut off."""

  def __init__(self, share: float = 0.0):
    self.source, self.share = OpenClipart(), share

  def __len__(self):
    return len(self.source)

  def broken(self, i):
    return i % 1000 < 1000 * self.share

  def __getitem__(self, i):
    record = self.source[i]
    return {**record, "image": record["image"][:60]} if self.broken(i) else record


class Hungry:
  """An objective that reads what nobody makes."""
  inputs = ("image", "view_a", "tokens")


def small(steps=6, **changes):
  config = get_config(str(steps))
  config.evaluators = config.final_evaluators = {}
  config.train.save_every = 0
  for name, value in changes.items():
    section, _, rest = name.partition("__")
    config[section][rest] = value
  return config


def test_damaged_records_are_replaced_counted_and_reported(tmp_path, capsys):
  config = small(45)
  config.data.source = call(Damaged, share=0.003)
  assert loop.run(config, tmp_path) == 0
  printed = capsys.readouterr().out
  assert "damaged records were replaced by others" in printed
  named = printed.split("they are number ")[1].split(" of the source")[0].split(", ")
  assert all(Damaged(0.003).broken(int(n)) for n in named)


def test_too_many_damaged_records_stop_the_run_with_a_list(tmp_path):
  config = small(45)
  config.data.source = call(Damaged, share=0.05)
  with pytest.raises(UserError, match=r"could not be read, more than 1%; they are number \d+, "):
    loop.run(config, tmp_path)


def test_a_run_resumed_on_another_mesh_is_trained_straight_through(tmp_path):
  losses = {}
  for name, lengths in {"straight": [(6, 1)], "resumed": [(3, 1), (6, 4)]}.items():
    for steps, fsdp in lengths:
      config = small(steps, mesh__fsdp=fsdp, train__log_every=1)
      # A schedule that does not know the end, so that the first part is that of the whole run.
      config.optimizer.schedule = call(warmup_constant, warmup=2)
      loop.run(config, tmp_path / name)
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    losses[name] = [line["train/loss"] for line in map(json.loads, lines) if "train/loss" in line]
  assert len(losses["straight"]) == 6
  np.testing.assert_allclose(losses["resumed"], losses["straight"], rtol=1e-4)


def test_mistakes_in_a_config_are_said_before_anything_is_compiled(tmp_path):
  cases = [
      (dict(data__batch_size=100), "batch_size 100 is not divisible by 8 devices; nearest that are: "
       "96, 104. Set --config.data.batch_size"),
      (dict(data__batch_size=0), "batch_size 0 is not a number of examples from 1 on"),
      (dict(data__batch_size=None), "batch_size None is not a number of examples"),
      (dict(train__microbatches=8), "32 is not divisible by 8 devices x 8 microbatches"),
      (dict(mesh__data=3), "mesh data=3 fsdp=1 tensor=1 does not make up the 8 devices"),
      (dict(objective=call(Hungry)), r"Hungry reads image, view_a, tokens and the pipeline makes "
       r"image, tokens\. Add to config.data.views.images: view_a"),
      (dict(train__samples=10), "Set exactly one"),
      (dict(train__steps=None), "given are none"),
      (dict(train__steps=0), "does nothing"),
  ]
  for changes, message in cases:
    objective = changes.pop("objective", None)
    config = small(**changes)
    if objective:
      config.objective = objective
    with pytest.raises(UserError, match=message):
      parts.prepare(config)


def test_towers_and_tokenizer_must_agree():
  config = small()
  config.model.text.length = 9
  with pytest.raises(UserError, match="writes 8 tokens a text and the text tower takes 9"):
    parts.prepare(config)
  config = small()
  config.model.text.vocabulary = 100
  with pytest.raises(UserError, match="tokens and the text tower only 100"):
    parts.prepare(config)


def test_a_workdir_that_cannot_be_written_is_an_error(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="Nothing can be written to --workdir=.*Name a folder"):
    loop.run(small(), tmp_path / "file" / "run")


def test_a_workdir_of_another_model_is_an_error_that_names_the_arrays(tmp_path):
  loop.run(small(2), tmp_path)
  before = {name: (tmp_path / name).read_text() for name in ("config.json", "metrics.jsonl")}
  config = small(4)
  config.model.embed = 16
  with pytest.raises(UserError, match=r"of another model; .*\n.*kernel: \(32, 32\) there, "
                     r"\(32, 16\) here"):
    loop.run(config, tmp_path)
  assert before == {name: (tmp_path / name).read_text() for name in before}


def test_lengths_are_interchangeable():
  for length in (dict(steps=100), dict(samples=3200), dict(samples="3.2k"),
                 dict(epochs=3200 / 4562)):
    training = build(call(Training, **length))
    assert training.total_steps(batch_size=32, examples=4562) == 100


def test_a_size_is_the_first_records_of_one_order_whatever_the_seed():
  for size, n in ((1000, 1000), ("1k", 1000), ("10%", 456), (None, 4562)):
    for seed in (0, 1):
      config = small(data__size=size)
      config.seed = seed
      data = build(config.data)
      assert len(data.source) == n
      if n < 4562:
        expected = Subset(OpenClipart(), n)
        assert data.source[n - 1]["key"] == expected[n - 1]["key"]


def test_it_is_told_how_often_each_example_is_seen(tmp_path):
  config = small(data__size="1k", train__samples="3.2k", train__steps=None)
  made = parts.prepare(config)
  lines = loop.summary(made, tmp_path, 0)
  assert made.total_steps == 100
  assert lines[:2] == [
      "data       1,000 records, each seen 3.2 times: 3,200 samples",
      "           Subset: the first 1,000 of 4,562 records in random order 0"]


def test_a_size_that_is_not_there_is_said_before_anything_is_compiled():
  with pytest.raises(UserError, match="A subset of 5k is not between 1 and the 4,562 records"):
    parts.prepare(small(data__size="5k"))
  with pytest.raises(UserError, match="size 'many' is not a number of records"):
    parts.prepare(small(train__samples="many", train__steps=None))
