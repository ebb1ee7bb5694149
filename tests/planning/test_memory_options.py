"""Settings that are tried if a step does not fit, and their order."""

from types import SimpleNamespace

import pytest

from clip_jax.config import call
from clip_jax.planning import memory_options
from run_config import get_config

MEMORY = {"none": 100, "dots": 60, "full": 20}


@pytest.fixture
def config():
  """Batches of 32, and two towers with `remat`."""
  return get_config()


def attempt(capacity):
  """Returns a fake `attempt`, in which memory depends on batch, microbatches, remat and FSDP."""
  tries = []

  def fits(config):
    tries.append(config)
    need = (
      MEMORY[config.model.image.remat]
      * config.data.batch_size
      / 32
      / config.train.microbatches
      / (1.25 if config.mesh.fsdp == -1 else 1)
    )
    return SimpleNamespace(fits=need <= capacity, need=need)

  return fits, tries


def test_cheapest_setting_of_each_option_that_fits_is_found(config):
  fits, _ = attempt(capacity=55)
  found = {
    option: (setting, one.fits)
    for option, setting, one in memory_options.find_fitting(config, fits, shards=4)
  }
  remat = lambda level: {"model.image.remat": level, "model.text.remat": level}
  assert found == {
    "remat": (remat("full"), True),
    "microbatches": ({"train.microbatches": 2}, True),
    "fsdp": ({"mesh.data": 1, "mesh.fsdp": -1}, False),
    "batch": ({"data.batch_size": 16}, True),
  }


def test_options_are_combined_if_none_is_enough(config):
  fits, _ = attempt(capacity=6)
  found = {
    option: setting
    for option, setting, one in memory_options.find_fitting(config, fits, shards=4)
    if one.fits
  }
  assert set(found) == {"remat and microbatches"}
  assert found["remat and microbatches"] == {
    "model.image.remat": "full",
    "model.text.remat": "full",
    "train.microbatches": 4,
  }


def test_few_settings_cover_the_full_range_of_an_option(config):
  config.data.batch_size = 4 * 2**16
  fits, tries = attempt(capacity=-1)
  list(memory_options.find_fitting(config, fits, shards=4, max_tries=4))
  assert [
    c.train.microbatches
    for c in tries
    if c.model.image.remat == "none" and c.train.microbatches > 1
  ] == [2, 64, 2**11, 2**16]


def test_settings_already_at_their_limit_are_not_tried(config):
  config.model.image.remat = config.model.text.remat = "dots"
  config.mesh.fsdp = -1
  found = memory_options.settings_by_option(config, shards=1)
  assert found["remat"] == [{"model.image.remat": "full", "model.text.remat": "full"}]
  assert found["fsdp"] == []


def test_microbatches_divide_the_rows_of_a_device(config):
  found = memory_options.settings_by_option(config, shards=8)
  assert found["microbatches"] == [{"train.microbatches": 2}, {"train.microbatches": 4}]
  assert found["batch"] == [{"data.batch_size": 16}, {"data.batch_size": 8}]


def test_setting_copies_the_config_and_formats_as_flags(config):
  setting = {"train.microbatches": 4, "model.image.remat": "full"}
  changed = memory_options.with_setting(config, setting)
  assert changed.train.microbatches == 4 and changed.model.image.remat == "full"
  assert config.train.microbatches == 1 and config.model.image.remat == "none"
  assert (
    memory_options.format_flags(setting)
    == "--config.train.microbatches=4 --config.model.image.remat=full"
  )


def test_tower_without_remat_is_left_out(config):
  from clip_jax.data.tokenizer import SentencePiece

  config.model.text = call(SentencePiece, context_length=8)
  assert memory_options.settings_by_option(config, shards=1)["remat"][0] == {
    "model.image.remat": "dots"
  }
