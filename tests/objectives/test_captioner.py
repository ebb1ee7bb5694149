"""The captioning loss against its definition, and what the decoder sees."""

from types import SimpleNamespace

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from clip_jax.model.text_decoder import caption_weights
from clip_jax.objectives.captioner import Captioner, decoder_of
from clip_jax.objectives.words import Words
from stand_ins import StandIn, rngs, stand_in_batch

B, N, V, L = 3, 4, 7, 5


class WithTokens(StandIn):
  """Images are their tokens, [B, N, D]; the features are the mean."""

  def __init__(self):
    super().__init__(vocab_size=V, context_length=L)
    width = self.image.width
    self.image = SimpleNamespace(width=width, token_width=width, tokens=None)

  def image_tokens(self, image, **_):
    self.seen += 1
    return image, image.mean(1)


@pytest.fixture(scope="module")
def model():
  return WithTokens()


def data_of(model, K=None):
  data = stand_in_batch(model, B)
  data["image"] = jnp.float32(np.random.default_rng(1).normal(size=(B, N, model.image.width)))
  data["tokens"] = jnp.array([[3, 0, 0, 0, 0], [1, 2, 5, 0, 0], [6, 5, 4, 3, 2]], jnp.int32)
  if K:
    data["tokens"] = jnp.stack([data["tokens"]] * K, 1)
  return data


def captioner(model, **changes):
  small = dict(width=8, depth=1, num_heads=2, mlp_dim=8, dtype="float32")
  return Captioner(model=model, **{**small, **changes}, rngs=rngs())


def test_the_loss_is_the_mean_over_tokens_and_the_padding_that_ends_a_caption(model):
  made, data = captioner(model, weight=0.5), data_of(model)
  seen = model.seen

  @jax.jit
  def run(data):
    z = made.embed(model, data, train=True, key=None)
    return made.loss(z, train=True), made.decoder.head(made.decoder(data["image"], data["tokens"]))

  (total, metrics), logits = run(data)
  assert model.seen == seen + 1  # The image tower runs once.
  logits = np.asarray(logits, np.float64)
  chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  losses, correct = [], []
  for i, length in enumerate((2, 4, 5)):  # With the end, if there is room for it.
    for k in range(length):
      token = int(data["tokens"][i, k])
      losses.append(-np.log(chances[i, k, token]))
      correct.append(chances[i, k].argmax() == token)
  np.testing.assert_array_equal(caption_weights(data["tokens"]).sum(1), (2, 4, 5))
  assert float(metrics["caption/loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
  assert float(metrics["caption/accuracy"]) == pytest.approx(np.mean(correct))
  pairs = float(metrics["pairs/loss"])
  assert float(total) == pytest.approx(pairs + 0.5 * np.mean(losses), rel=1e-5)


def test_a_position_sees_the_tokens_before_it_the_image_and_none_in_parallel(model):
  decoder = captioner(model).decoder
  run = jax.jit(nnx.merge(*split_state(decoder)).__call__)
  data = data_of(model)
  changed = data["tokens"].at[:, 2].set(1)
  for hidden in (False, True):
    parallel = jnp.full(B, hidden)
    before = run(data["image"], data["tokens"], parallel)
    moved = np.abs(run(data["image"], changed, parallel) - before).max((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 3 + [not hidden] * 2
    assert (np.abs(run(-data["image"], data["tokens"], parallel) - before).max((0, 2)) > 1e-4).all()


@pytest.mark.slow
def test_the_fraction_in_parallel_is_drawn_by_the_key_of_each_row(model):
  made, data = captioner(model, parallel=0.5), data_of(model)
  keys = jax.random.split(jax.random.key(0), B)
  embed = jax.jit(lambda keys: made.embed(model, data, train=True, key=keys)["caption_loss"])
  mixed = embed(keys)
  alone = {h: captioner(model, parallel=h) for h in (0.0, 1.0)}
  each = [alone[h].embed(model, data, train=True, key=keys)["caption_loss"] for h in (0.0, 1.0)]
  hidden = [np.isclose(mixed, one, rtol=1e-5) for one in each]
  assert (hidden[0] ^ hidden[1]).all()


def test_wrapped_decoders_are_found_and_impossible_settings_are_errors(model):
  made = captioner(model)
  assert decoder_of(Words(model=model, pairs=made, rngs=rngs())) is made.decoder
  assert decoder_of(made.pairs) is None
  with pytest.raises(UserError, match="StandIn|SimpleNamespace.* does not give"):
    captioner(StandIn())
  with pytest.raises(UserError, match="has stored features"):
    made.embed(
      model, {"tokens": jnp.zeros((2, 4)), "image": jnp.zeros((2, 4))}, train=True, key=None
    )
