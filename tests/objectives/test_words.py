"""The classification of images by words against its formula in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.objectives.words import Words, first_occurrences
from stand_ins import StandIn, rngs, stand_in_batch

B = 8


def made_with(model, **changes):
  return Words(model=model, dtype="float32", rngs=rngs(), **changes)


def test_frequent_words_count_little_over_two_batches():
  model = StandIn()
  made, V = made_with(model, weight=0.5, chunk_size=2), model.text.vocab_size
  df, n = np.zeros(V), 0
  for seed in range(3):
    data = stand_in_batch(model, B, seed)
    data["tokens"] = data["tokens"].at[:, 0].set(2)  # A begin token, which every caption has.
    z = made.embed(model, data, train=True, key=None)
    assert model.seen == seed + 1
    train = seed < 2
    value, metrics = made.loss(z, train=train)
    captions = [sorted({*row}) for row in data["tokens"].tolist()]
    counts, n = df.copy(), n + B
    for words in captions:
      counts[words] += 1
    logits = np.asarray(data["image"], np.float64) @ np.asarray(made.head.kernel[...], np.float64)
    total = 0.0
    for words, row in zip(captions, logits):
      w = np.maximum(0, np.log(n / (1 + counts[words])))
      assert w[words.index(2)] == 0
      if w.sum():
        total += (w / w.sum()) @ (np.log(np.exp(row).sum()) - row[words]) / B
    assert float(metrics["words/loss"]) == pytest.approx(total, rel=1e-5)
    assert float(value) == pytest.approx(float(metrics["pairs/loss"]) + 0.5 * total, rel=1e-5)
    df = counts if train else df  # Nothing is counted without training.
    np.testing.assert_array_equal(made.counts[...], df)
  assert made.captions[...] == 2 * B

  made.captions[...], made.counts[...] = jnp.int32(2**30 - 1), jnp.full(V, 2**20)
  made.loss(z, train=True)  # Counts are halved before they overflow.
  assert made.captions[...] == (2**30 - 1 + B) // 2 and made.counts[2] == (2**20 + B) // 2


def test_first_occurrences_are_those_of_a_loop():
  rows = np.random.default_rng(0).integers(0, 5, (40, 9))
  wanted = [[token not in row[:k] for k, token in enumerate(row)] for row in rows.tolist()]
  np.testing.assert_array_equal(first_occurrences(jnp.array(rows)), wanted)


def test_stored_features_in_place_of_tokens_are_an_error():
  model = StandIn()
  with pytest.raises(UserError, match="needs the tokens"):
    made_with(model).embed(model, {"tokens": jnp.zeros((2, 4))}, train=True, key=None)
