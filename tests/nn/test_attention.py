"""Attention against its formula written out, and the choice of implementation."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh
import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.nn import attention as attention_lib, layers, remat as remat_lib, transformer
from clip_jax.nn.attention import attention, softmax_attention
from clip_jax.parallel import mesh as mesh_lib, placement
from clip_jax.towers.vit import Vit


@pytest.fixture(autouse=True)
def clear_cudnn_cache():
  """Forgets between tests whether cuDNN works."""
  attention_lib.cudnn_problem.cache_clear()
  yield
  attention_lib.cudnn_problem.cache_clear()


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def heads(B=2, N=5, dtype="float32"):
  return [jnp.asarray(normal(B, N, 3, 4, seed=i), dtype) for i in range(3)]


MASK = np.random.default_rng(7).random((2, 1, 5, 5)) < 0.5
MASK[..., 0] = True


def written_out(q, k, v, mask):
  """Attention in NumPy, one query of one head at a time."""
  result = np.zeros_like(q)
  for b, t, h in np.ndindex(q.shape[:3]):
    seen = np.ones(len(k[b]), bool) if mask is None else mask[min(b, len(mask) - 1), 0, t]
    weights = np.exp(k[b, seen, h] @ q[b, t, h] / np.sqrt(q.shape[-1]))
    result[b, t, h] = weights @ v[b, seen, h] / weights.sum()
  return result


@pytest.mark.parametrize("mask", [None, MASK, MASK[:1]], ids=["all", "mask", "one mask"])
def test_values_and_gradients_match_the_formula(mask):
  q, k, v = heads()
  expected = written_out(*map(np.asarray, (q, k, v)), mask)
  np.testing.assert_allclose(attention(q, k, v, mask), expected, rtol=1e-5, atol=1e-6)
  g = normal(2, 5, 3, 4, seed=3)
  loss = lambda attend: lambda *x: (attend(*x) * g).sum()
  got = jax.grad(loss(lambda *x: attention(*x, mask)), (0, 1, 2))(q, k, v)
  expected = jax.grad(loss(lambda *x: jax.nn.dot_product_attention(*x, mask=mask)), (0, 1, 2))(
    q, k, v
  )
  for a, b in zip(got, expected):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_gradient_matches_finite_differences():
  q, k, v = heads()
  f = lambda q: jnp.square(attention(q, k, v, MASK)).sum()
  step = 1e-2 * normal(*q.shape, seed=5)
  np.testing.assert_allclose(
    (f(q + step) - f(q - step)) / 2, (jax.grad(f)(q) * step).sum(), rtol=1e-3
  )


def test_large_logits_neither_overflow_nor_lose_precision():
  q, k, v = heads()
  y, gradients = jax.vjp(lambda *x: softmax_attention(*x, None), 300 * q, k, v)
  np.testing.assert_allclose(
    y,
    written_out(*(np.asarray(x, np.longdouble) for x in (300 * q, k, v)), None),
    rtol=1e-3,
    atol=1e-4,
  )
  assert all(jnp.isfinite(x).all() for x in gradients(y))


def test_bfloat16_error_is_that_of_rounding_inputs_and_weights():
  q, k, v = heads(N=64)
  g = normal(*q.shape, seed=3)

  def both(*x):
    y, gradients = jax.vjp(lambda *x: softmax_attention(*x, None), *x)
    return y, *gradients(jnp.asarray(g, y.dtype))

  rounded = [x.astype("bfloat16") for x in (q, k, v)]
  exact = both(*(x.astype("float32") for x in rounded))
  for a, b in zip(both(*rounded), exact):
    assert a.dtype == jnp.bfloat16
    assert jnp.abs(a - b).max() < 2**-6 * jnp.abs(b).max()


def test_attention_weights_are_not_saved_for_the_backward_pass():
  q, k, v = heads(N=64)
  kept = jax.eval_shape(lambda *x: jax.vjp(lambda *x: softmax_attention(*x, None), *x)[1], q, k, v)
  assert max(x.size for x in jax.tree.leaves(kept)) == q.size  # Not 64 x 64 per head.


def test_bias_has_a_gradient():
  q, k, v = heads()
  bias = normal(1, 3, 5, 5, seed=4)
  grad = jax.grad(lambda bias: attention(q, k, v, MASK, bias)[0, 1, 1, 2])(bias)
  assert jnp.abs(grad[0, 1, 1]).max() > 0 and not jnp.abs(grad[0, 1, 0]).max()


def on(backend, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)


def test_gpus_use_cudnn_where_it_works(monkeypatch):
  q, k, v = heads(dtype="bfloat16")
  q, k, v = (jnp.concatenate([x, x], axis=-1) for x in (q, k, v))  # Heads of 8.
  calls = []

  def kernel(q, k, v):
    calls.append(q.shape)
    return softmax_attention(q, k, v, None)

  monkeypatch.setattr(attention_lib, "_cudnn", kernel)
  on("cpu", monkeypatch)
  attention(q, k, v)
  assert not calls
  on("gpu", monkeypatch)
  np.testing.assert_array_equal(attention(q, k, v), softmax_attention(q, k, v, None))
  assert calls[-1] == q.shape and len(calls) == 2  # Trial, then call.
  attention(q, k, v)
  assert len(calls) == 3
  for other in (dict(kind="xla"), dict(mask=jnp.asarray(MASK)), dict(bias=jnp.zeros((1, 3, 5, 5)))):
    attention(q, k, v, **other)
  attention(*(x.astype("float32") for x in (q, k, v)))
  attention(*(x[..., :4] for x in (q, k, v)))
  assert len(calls) == 3


def test_odd_numbers_of_tokens_are_padded_for_cudnn(monkeypatch):
  called = []

  def kernel(q, k, v, *, implementation, query_seq_lengths=None, key_value_seq_lengths=None):
    called.append((implementation, q.shape[1]))
    if query_seq_lengths is None:
      return softmax_attention(q, k, v, None)
    np.testing.assert_array_equal(query_seq_lengths, key_value_seq_lengths)
    seen = jnp.arange(q.shape[1]) < key_value_seq_lengths[0]
    return softmax_attention(q, k, v, seen[None, None, None])

  monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
  for N in (4, 5):
    q, k, v = heads(N=N)
    np.testing.assert_allclose(
      attention_lib._cudnn(q, k, v), softmax_attention(q, k, v, None), rtol=1e-5, atol=1e-6
    )
  assert called == [("cudnn", 4), ("cudnn", 6)]


def test_a_cudnn_kernel_with_wrong_results_is_not_used(monkeypatch):
  on("gpu", monkeypatch)
  monkeypatch.setattr(
    attention_lib, "_cudnn", lambda q, k, v: softmax_attention(q, k, v, None) * 1.1
  )
  q = jnp.ones((2, 4, 1, 8), "bfloat16")
  with pytest.warns(UserWarning, match="used instead: its results are off by 0.1"):
    y = attention(q, q, q)
  np.testing.assert_array_equal(y, jnp.ones_like(q))


def test_without_cudnn_auto_warns_once_and_falls_back(monkeypatch, recwarn):
  on("gpu", monkeypatch)
  q = jnp.ones((2, 4, 1, 8), "bfloat16")
  for _ in range(2):
    np.testing.assert_array_equal(attention(q, q, q), jnp.ones_like(q))
  assert ["cuDNN is not detected" in str(w.message) for w in recwarn] == [True]
  with pytest.raises(UserError, match='"cudnn" cannot be used: cuDNN is not detected.*"auto"'):
    attention(q, q, q, kind="cudnn")


def test_tracing_for_absent_gpus_does_not_warn(recwarn):
  kind = AbstractDevice(device_kind="H100", num_cores=None, platform="gpu")
  with jax.sharding.use_abstract_mesh(AbstractMesh((8,), ("data",), abstract_device=kind)):
    x = jax.ShapeDtypeStruct((2, 4, 1, 8), jnp.bfloat16)
    assert "not detected" in attention_lib.why_not_cudnn(x, None, None)
    assert jax.eval_shape(attention, x, x, x).shape == x.shape
  assert not recwarn.list


@pytest.mark.parametrize(
  "backend, change, reason",
  [
    ("cpu", {}, "this runs on a CPU, and cuDNN needs a GPU"),
    ("gpu", {"mask": MASK}, "without a mask and a bias"),
    ("gpu", {"dtype": "float32"}, "bfloat16 or float16, not float32"),
    ("gpu", {"width": 12}, "multiple of 8 and at most 128, not 12"),
    ("gpu", {"width": 136}, "not 136"),
  ],
)
def test_requesting_cudnn_where_it_cannot_be_used_is_an_error(backend, change, reason, monkeypatch):
  on(backend, monkeypatch)
  q = jnp.ones((2, 5, 1, change.get("width", 8)), change.get("dtype", "bfloat16"))
  with pytest.raises(UserError, match=f"cannot be used: .*{reason}"):
    attention(q, q, q, change.get("mask"), kind="cudnn")


def test_unknown_attention_lists_the_known_ones():
  with pytest.raises(UserError, match="Unknown attention 'flash'; choose from 'auto', 'xla'"):
    transformer.Attention(8, 2, attention="flash", rngs=None)


def test_all_platforms_compute_the_same(monkeypatch):
  make = functools.partial(transformer.Block, 8, 2, 16)
  stack = transformer.Stack(lambda rngs: make(rngs=rngs), 3, rngs=nnx.Rngs(1))
  stack.blocks.attention.qkv.bias[...] = normal(3, 3, 2, 4)
  x = normal(2, 5, 8)

  programs, results = {}, {}
  for backend in ("cpu", "gpu", "tpu"):

    def step(stack, x):  # A new function for each backend, so that JAX's trace cache does not hit.
      return jax.value_and_grad(lambda stack: jnp.square(stack(x)).sum())(stack)

    on(backend, monkeypatch)
    programs[backend] = str(jax.make_jaxpr(step)(stack, x))
    results[backend] = step(stack, x)
  for backend in ("gpu", "tpu"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      results[backend],
      results["cpu"],
    )
  # A GPU has no loop, and barriers that keep the compiler from saving what is to be recomputed.
  assert "scan[" in programs["cpu"] and "scan[" in programs["tpu"]
  assert "scan[" not in programs["gpu"]
  assert "optimization_barrier" in programs["gpu"]
  assert "optimization_barrier" not in programs["tpu"]


def test_gpu_program_moves_no_activations_between_devices(monkeypatch):
  """The partitioner gathers activations for layouts and kernels that it does not understand."""
  for module in (attention_lib, layers, remat_lib):
    monkeypatch.setattr(module, "target_platform", lambda: "gpu")
  monkeypatch.setattr(attention_lib, "why_not_cudnn", lambda *_: "it cannot be compiled here")
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:8])
  graphdef, params = nnx.split(Vit(size="mu", patch=8, image_size=32, rngs=nnx.Rngs(0)))
  loss = lambda params, image: nnx.merge(graphdef, params)(image).astype(jnp.float32).sum()
  with jax.set_mesh(mesh):
    image = jax.device_put(jnp.ones((16, 32, 32, 3)), placement.batch_sharding(mesh))
    text = jax.jit(jax.grad(loss)).lower(params, image).compile().as_text()
  assert "all-reduce" in text
  assert "all-gather" not in text and "all-to-all" not in text
