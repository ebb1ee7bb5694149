"""Which changes of a config are named when a run resumes, and which are refused."""

from pathlib import Path

import pytest

from clip_jax.config import call, from_json, saved_entries, to_saved
from clip_jax.errors import UserError
from clip_jax.evaluators import Retrieval
from clip_jax.training import warmup_constant
from clip_jax.training.config_changes import changed_fields, check_data, check_model
from clip_jax.training.history import History, Record
from clip_jax.training.setup import build_setup
from run_config import get_config

GOLDEN = Path(__file__).parents[1] / "golden/clip_jax"
RECORD = Record(History.new(8, 1.0), "data", "tokenizer")


def changes(change):
  config = get_config()
  before = saved_entries(to_saved(config))
  change(config)
  return changed_fields(before, saved_entries(to_saved(config)))


def set_field(name, value):
  def change(config):
    *path, last = name.split(".")
    for part in path:
      config = config[part]
    config[last] = value

  return change


def test_changed_values_are_listed_and_others_are_not():
  assert changes(lambda config: None) == {}
  assert changes(set_field("data.batch_size", 64)) == {"data.batch_size": ("32", "64")}


def test_call_that_is_new_or_gone_is_one_line():
  def other(config):
    config.evaluators = {"test": call(Retrieval, source=config.evaluators.val.source)}
    config.optimizer.schedule = call(warmup_constant, warmup=1)

  retrieval = '"clip_jax.evaluators.Retrieval"'
  found = changes(other)
  assert found.pop("evaluators.test") == ("(none)", retrieval)
  assert found.pop("evaluators.val") == (retrieval, "(none)")
  assert found.pop("optimizer.schedule.fn") == (
    '"clip_jax.training.warmup_cosine"',
    '"clip_jax.training.warmup_constant"',
  )
  assert all(name.startswith("optimizer.schedule.") for name in found)


@pytest.mark.parametrize("workdir", sorted(GOLDEN.glob("*/workdir")), ids=lambda p: p.parent.name)
def test_runs_of_earlier_versions_have_no_changes(workdir):
  text = (workdir / "config.json").read_text()
  assert changed_fields(saved_entries(text), saved_entries(to_saved(from_json(text)))) == {}


@pytest.mark.parametrize(
  "name, value, what",
  [
    ("data.views.tokenizer.lower", False, "tokenizer"),
    ("data.size", "50%", "training data"),
    ("data.source.swapped", 0.1, "training data"),
  ],
)
@pytest.mark.parametrize("past", [None, RECORD], ids=["old run", "run with a history"])
def test_other_data_and_tokenizers_are_refused_with_a_way_out(name, value, what, past):
  with pytest.raises(UserError) as refused:
    check_data(changes(set_field(name, value)), past, RECORD, Path("runs/a"))
  message = str(refused.value)
  assert f"another {what}: {name}: " in message
  assert "another --workdir, where --config.train.init_from=runs/a starts" in message


def test_file_may_move_if_its_content_stays():
  moved = {"data.source.path": ('"/data/a"', '"/mnt/a"'), "data.batch_size": ("8", "9")}
  check_data(moved, RECORD, RECORD, Path("a"))
  check_data(moved, None, RECORD, Path("a"))
  other = Record(RECORD.history, "other", "tokenizer")
  with pytest.raises(UserError, match='training data: data.source.path: "/data/a" -> "/mnt/a"'):
    check_data(moved, RECORD, other, Path("a"))
  with pytest.raises(UserError, match="another training data, although no field of it"):
    check_data({}, RECORD, other, Path("a"))


def test_model_that_fits_the_parameters_but_is_another_is_refused():
  check_model(changes(set_field("model.image.remat", "full")), Path("a"))
  check_model(changes(set_field("objective.keep_patches", 1.0)), Path("a"))
  with pytest.raises(UserError, match='another model: model.image.activation: .* -> "gelu"'):
    check_model(changes(set_field("model.image.activation", "gelu")), Path("a"))


def test_length_in_samples_counts_what_was_seen():
  from clip_jax.training.setup import with_history

  config = get_config()
  config.train.steps, config.train.samples, config.data.batch_size = None, 320, 16
  setup = build_setup(config)
  assert setup.total_steps == 20
  resumed = with_history(setup, History.new(32, 1.0).resumed(6, 16, setup.compute.flops))
  assert resumed.total_steps == 6 + (320 - 6 * 32) // 16
  assert with_history(setup, setup.history).optimizer is setup.optimizer
