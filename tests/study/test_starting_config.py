"""The recipe for a number of pairs builds, and its fractions and steps fit the data."""

import jax
import pytest

from clip_jax.config import call
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.errors import UserError
from clip_jax.model.learner import abstract_learner
from clip_jax.study.starting_config import (
  DataFacts,
  held_out_fractions,
  starting_config,
  vocabulary_size,
)
from clip_jax.training.experiment import check_sections


def make(pairs, side=300, **options):
  tokenizer = call(SentencePiece, context_length=24)
  source = lambda part: call(OpenClipart, split=part)
  facts = DataFacts(pairs, side, 1, 0.0)
  return starting_config(facts, source=source, tokenizer=tokenizer, vocab_size=4096, **options)


@pytest.mark.parametrize("pairs", [16, 300, 3_000, 50_000, 200_000, 3_000_000, 50_000_000])
def test_every_size_gives_a_valid_config_whose_batch_fits(pairs):
  config = make(pairs).config
  check_sections(config)
  train = round(pairs * held_out_fractions(pairs)[0])
  assert config.data.batch_size <= train
  epochs = config.train.steps * config.data.batch_size / train
  assert 4 <= epochs <= 60
  model = abstract_learner(config).model
  assert (
    model.text.context_length == 24
    and model.image.image_size == (config.data.views.images.image.crop.size,) * 2
  )


def test_larger_data_has_larger_models_and_vocabularies():
  count = lambda pairs: sum(x.size for x in jax.tree.leaves(abstract_learner(make(pairs).config)))
  assert count(200_000) < count(3_000_000)
  assert vocabulary_size(3_000) < vocabulary_size(50_000) < vocabulary_size(10**6)
  for pairs in (16, 3_000, 10**9):
    train, val, test = held_out_fractions(pairs)
    assert abs(train + val + test - 1) < 1e-6 and val == test and 1 <= val * pairs <= 6_000


def test_small_images_are_not_enlarged_and_too_few_pairs_are_an_error():
  assert make(3_000, side=50).config.data.views.images.image.crop.size == 48
  with pytest.raises(UserError, match="There are 9 pairs, too few"):
    make(9)
