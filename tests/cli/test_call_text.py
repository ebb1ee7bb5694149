"""Tests of calls in overrides on the command line."""

import json

import pytest

import clip_jax
from clip_jax import train
from clip_jax.cli.flags import parse
from clip_jax.config import call_part, to_json
from clip_jax.data import ArrayRecord, HorizontalFlip, Mixture, OpenClipart
from clip_jax.errors import UserError
from clip_jax.evaluators import Retrieval


def config(*overrides):
  arguments = ["--config=quickstart", *(f"--config.{override}" for override in overrides)]
  return parse(arguments, "", config=True, make_call=call_part).config


def plain(value):
  return json.loads(to_json(clip_jax.call(Mixture, sources=(value,), weights=(1.0,))))["sources"][0]


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("ArrayRecord('d')", lambda: clip_jax.call(ArrayRecord, path="d")),
    ("ArrayRecord(path='d')", lambda: clip_jax.call(ArrayRecord, path="d")),
    ("clip_jax.data.OpenClipart('val')", lambda: clip_jax.call(OpenClipart, split="val")),
    (
      "Mixture([OpenClipart(), ArrayRecord('a, b')], weights=(1, 2))",
      lambda: clip_jax.call(
        Mixture,
        sources=(clip_jax.call(OpenClipart), clip_jax.call(ArrayRecord, path="a, b")),
        weights=(1, 2),
      ),
    ),
  ],
)
def test_a_call_replaces_the_source(text, wanted):
  assert plain(config(f"data.source={text}").data.source) == plain(wanted())


def test_lists_of_calls_and_new_entries_of_groups():
  made = config(
    "data.views.images.image.augment=[HorizontalFlip(probability=0.25)]",
    "final_evaluators.val=Retrieval(source=OpenClipart('val'))",
    "data.batch_size=64",
  )
  flip = made.data.views.images.image.augment[0]
  assert (flip.fn, flip.probability) == (clip_jax.call(HorizontalFlip).fn, 0.25)
  wanted = clip_jax.call(Retrieval, source=clip_jax.call(OpenClipart, split="val"))
  assert made.final_evaluators.val.to_dict() == wanted.to_dict() and made.data.batch_size == 64
  with pytest.raises(AttributeError):
    made.data.sorce = 1  # Still locked.


@pytest.mark.parametrize(
  "override, message",
  [
    ("data.source=ArrayRecrd('d')", "no part called 'ArrayRecrd'.*Did you mean 'ArrayRecord'"),
    ("data.source=os.system('true')", "no part called 'os.system'"),
    ("data.source=ArrayRecord(pth='d')", "no argument 'pth'"),
    ("data.source=ArrayRecord('d', path='e')", "receives path twice"),
    ("data.source=OpenClipart(1, 2, 3, 4, 5, 6)", "arguments, not 6"),
    ("data.source=ArrayRecord(open('x'))", "no part called 'open'"),
    ("data.source=ArrayRecord(a + 'x')", "is not a literal"),
    ("data.source=ArrayRecord(*'d')", "not supported"),
    ("data.sorce=ArrayRecord('d')", "no 'data.sorce'.*Did you mean 'source'"),
    ("nowhere.source=ArrayRecord('d')", "no 'nowhere.source'"),
    ("sources=ArrayRecord('d')", "no 'sources'"),
  ],
)
def test_mistakes_are_errors(override, message):
  with pytest.raises(UserError, match=message):
    config(override)


def test_a_change_inside_a_replaced_field_is_refused():
  with pytest.raises(UserError, match=r"data.source.path=e changes a part of --config.data.source"):
    config("data.source=ArrayRecord('d')", "data.source.path=e")


def test_a_text_that_reads_like_a_call_stays_a_text():
  made = config("data.source.split=val(1)")
  assert made.data.source.split == "val(1)"


def test_the_train_command_accepts_calls(capsys):
  train.main(["--config=quickstart", "--config.data.source=ArrayRecord('d')", "--print"])
  assert json.loads(capsys.readouterr().out)["data"]["source"]["path"] == "d"
