"""The cross-entropy of tokens against a loop in NumPy, in chunks and at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.losses import token_cross_entropy

B, L, D, V = 6, 4, 5, 11


def by_loops(x, kernel, tokens, weights):
  loss, correct = np.zeros(B), np.zeros(B)
  for i in range(B):
    for k in range(L):
      logits = (x[i, k] if x.ndim == 3 else x[i]) @ kernel
      p = np.exp(logits) / np.exp(logits).sum()
      loss[i] -= weights[i, k] * np.log(p[tokens[i, k]])
      correct[i] += weights[i, k] * (logits.argmax() == tokens[i, k])
  return loss, correct


@pytest.mark.parametrize("shape", [(B, D), (B, L, D)])
def test_it_matches_a_loop_and_chunks_have_the_same_gradient(shape):
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=shape), 2 * rng.normal(size=(D, V))
  tokens, weights = rng.integers(0, V, (B, L)), rng.random((B, L))
  tokens[0] = (x[0] @ kernel).argmax(-1)  # So that some are correct.

  def total(x, kernel, chunk_size):
    loss, correct = token_cross_entropy(
      lambda x: x @ kernel, x, tokens, weights, vocab_size=V, chunk_size=chunk_size
    )
    return loss.sum(), (loss, correct)

  results = {}
  for chunk_size in (None, 2):
    grad = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (_, found), slopes = grad(jnp.float32(x), jnp.float32(kernel), chunk_size)
    for one, wanted in zip(found, by_loops(x, kernel, tokens, weights)):
      np.testing.assert_allclose(one, wanted, rtol=1e-5)
    results[chunk_size] = slopes
  for one, other in zip(results[None], results[2]):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_logits_of_all_rows_are_never_in_memory():
  def loss(x, kernel, tokens):
    return token_cross_entropy(
      lambda x: x @ kernel, x, tokens, jnp.ones(tokens.shape), vocab_size=2**14
    )[0].sum()

  shapes = (((64, 256, 8), "float32"), ((8, 2**14), "float32"), ((64, 256), "int32"))
  arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
  compiled = jax.jit(jax.grad(loss)).lower(*arguments).compile()
  dense = 4 * 64 * 256 * 2**14  # 1 GB; a chunk has 2^26 logits, a quarter of it.
  assert compiled.memory_analysis().temp_size_in_bytes < 0.9 * dense


def test_a_chunk_size_that_does_not_divide_the_rows_is_an_error():
  with pytest.raises(UserError, match="does not divide"):
    x, tokens = jnp.zeros((6, 2)), jnp.zeros((6, 3), int)
    token_cross_entropy(lambda x: x, x, tokens, tokens, vocab_size=2, chunk_size=4)
