"""Layers that towers are built from: linear layers, norms and MLPs; initialisers and activations.

Parameters are float32; `dtype` is the dtype a layer computes in. Kernels are [in, ..., out], and
attention heads have their own axis, so that tensor parallelism can split it.

The gradient of a parameter is a sum over all rows of the batch, including those on other devices.
`broadcast_param` and `matmul.matmul_f32_grad` compute it in float32.
"""

from collections.abc import Callable
import functools
import math
from typing import Annotated, Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from clip_jax.cli.values import OneOf, Range
from clip_jax.errors import UserError
from clip_jax.nn.matmul import activation_dtype, matmul_f32_grad
from clip_jax.nn.remat import remat
from clip_jax.nn.target import target_platform
from clip_jax.parallel.placement import shard_batch

Initializer = Callable[..., jax.Array]

# big_vision uses the tanh approximation, OpenAI's CLIP quick_gelu, and open_clip's own models the
# exact form.
ACTIVATIONS = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "silu": jax.nn.silu,  # Of SwiGLU.
}
Activation = Annotated[str, OneOf(ACTIVATIONS)]
NormEps = Annotated[float, Range(above=0, high=1)]


def lookup(table: dict[Any, Any], name: Any, what: str) -> Any:
  """Returns `table[name]`; raises `UserError`, listing the known names, if it is not there."""
  if name not in table:
    raise UserError(f"Unknown {what} {name!r}; choose from {', '.join(map(repr, table))}.")
  return table[name]


def glorot(fan_in: int, fan_out: int) -> Initializer:
  """Glorot uniform with explicit fans, for kernels where the shape does not determine them.

  The variance is 2 / (fan_in + fan_out).

  Source: Glorot & Bengio 2010, eq. 16.
  """
  limit = math.sqrt(6 / (fan_in + fan_out))
  return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -limit, limit)


def normal(deviation: float) -> Initializer:
  """Normal initializer with a fixed standard deviation, independent of the shape."""
  return lambda key, shape: deviation * jax.random.normal(key, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def broadcast_param(parameter: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
  """Casts a parameter to `dtype` and broadcasts it to `shape`.

  The parameter's gradient has the parameter's dtype.
  """
  return jnp.broadcast_to(parameter.astype(dtype), shape)


def _broadcast_gradient(shape, dtype, parameter, g):
  if target_platform() == "gpu":
    # Without the barrier, XLA keeps a float32 copy of g and of its inputs for this sum. For
    # positions, [N, D], it also lays out all activations batch-last, unless g is flattened first.
    g = lax.optimization_barrier(g.reshape(-1, parameter.size) if parameter.ndim == 2 else g)
    if parameter.ndim == 2:
      return (g.sum(0, dtype=parameter.dtype).reshape(parameter.shape),)
  return (g.sum(range(len(shape) - parameter.ndim), dtype=parameter.dtype),)


broadcast_param.defvjp(
  lambda parameter, shape, dtype: (broadcast_param(parameter, shape, dtype), parameter),
  _broadcast_gradient,
)


def add_bias(x: jax.Array, parameter: jax.Array) -> jax.Array:
  """Computes `x + parameter`, broadcasting the parameter over the leading axes of x."""
  return x + broadcast_param(parameter, x.shape, x.dtype)


class Linear(nnx.Module):
  """A linear layer, `x @ kernel + bias`, over the last axes of x.

  Args:
    inputs, outputs: shapes of the contracted and the new axes; an int is a single axis.
    init: initializer of the kernel; Glorot uniform by default.
  """

  def __init__(
    self,
    inputs: int | tuple[int, ...],
    outputs: int | tuple[int, ...],
    *,
    bias: bool = True,
    init: Initializer | None = None,
    dtype: str = "float32",
    rngs: nnx.Rngs,
  ):
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    init = init or glorot(math.prod(inputs), math.prod(outputs))
    self.kernel = nnx.Param(init(rngs.params(), inputs + outputs))
    self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
    self.contracted = len(inputs)
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., inputs] -> [..., outputs]."""
    x = matmul_f32_grad(x, self.kernel[...], self.contracted, self.dtype)
    return x if self.bias is None else add_bias(x, self.bias[...])


class LayerNorm(nnx.Module):
  """Layer normalisation over the last axis, computed in float32."""

  def __init__(self, width: int, *, norm_eps: float = 1e-6, dtype: str = "float32"):
    self.scale = nnx.Param(jnp.ones(width))
    self.bias = nnx.Param(jnp.zeros(width))
    self.norm_eps, self.dtype = norm_eps, dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., width] -> [..., width]."""

    @remat
    def normalise(x, scale, bias):
      x = x.astype(jnp.float32)
      x = x - x.mean(-1, keepdims=True)
      x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.norm_eps)
      return (x * scale + bias).astype(activation_dtype(self.dtype))

    return normalise(x, self.scale[...], self.bias[...])


class RmsNorm(nnx.Module):
  """Root mean square normalisation over the last axis, computed in float32.

  Source: Zhang & Sennrich 2019, eq. 4; without a bias.
  """

  def __init__(self, width: int, *, norm_eps: float = 1e-6, dtype: str = "float32"):
    self.scale = nnx.Param(jnp.ones(width))
    self.norm_eps, self.dtype = norm_eps, dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., width] -> [..., width]."""

    @remat
    def normalise(x, scale):
      x = x.astype(jnp.float32)
      x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.norm_eps)
      return (x * scale).astype(activation_dtype(self.dtype))

    return normalise(x, self.scale[...])


NORMS: dict[str, type[LayerNorm] | type[RmsNorm]] = {"layer": LayerNorm, "rms": RmsNorm}
Norm = Annotated[str, OneOf(NORMS)]


class BatchNorm(nnx.Module):
  """Batch normalisation of each channel over all other axes, computed in float32.

  Statistics are those of the global batch, on any number of devices. In training, each call moves
  the running averages by `momentum`; the running variance is the unbiased estimate, as in PyTorch.
  Inference normalises with the running averages.

  Args:
    scale: initial value of the learned scale; 0 makes a residual block start as the identity.

  Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
  """

  def __init__(
    self,
    width: int,
    *,
    scale: float = 1.0,
    momentum: float = 0.1,
    norm_eps: float = 1e-5,
    dtype: str = "float32",
  ):
    self.scale = nnx.Param(jnp.full(width, scale))
    self.bias = nnx.Param(jnp.zeros(width))
    self.mean = nnx.BatchStat(jnp.zeros(width))
    self.variance = nnx.BatchStat(jnp.ones(width))
    self.momentum, self.norm_eps, self.dtype = momentum, norm_eps, dtype

  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """[B, ..., D] -> [B, ..., D].

    Args:
      train: whether to normalise with the statistics of this batch and update the running averages.
    """

    @remat
    def normalise(x, scale, bias, mean, variance):
      x = x.astype(jnp.float32)
      if train:
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        variance = jnp.square(x - mean).mean(axes)
      y = (x - mean) * lax.rsqrt(variance + self.norm_eps)
      return (y * scale + bias).astype(self.dtype), mean, variance

    y, mean, variance = normalise(
      x, self.scale[...], self.bias[...], self.mean[...], self.variance[...]
    )
    if train:
      count = math.prod(x.shape[:-1])
      unbiased = variance * (count / max(count - 1, 1))
      for average, now in ((self.mean, mean), (self.variance, unbiased)):
        average[...] += self.momentum * (lax.stop_gradient(now) - average[...])
    return y


class Mlp(nnx.Module):
  """Two linear layers with an activation between them.

  Args:
    gated: whether the hidden units are multiplied by a third linear layer: activation(gate) * up.
      With activation="silu" this is SwiGLU (Shazeer 2020, eq. 6), without its biases if they are 0.
    hidden_norm: kind of a norm of the hidden units, a name in `NORMS`; None for no norm.
  """

  def __init__(
    self,
    width: int,
    hidden_dim: int,
    *,
    activation: str = "gelu_tanh",
    gated: bool = False,
    hidden_norm: str | None = None,
    norm_eps: float = 1e-6,
    init: Initializer | None = None,
    dtype: str = "float32",
    rngs: nnx.Rngs,
  ):
    lookup(ACTIVATIONS, activation, "activation")
    self.up = Linear(width, hidden_dim, init=init, dtype=dtype, rngs=rngs)
    self.down = Linear(hidden_dim, width, init=init, dtype=dtype, rngs=rngs)
    self.gate = Linear(width, hidden_dim, init=init, dtype=dtype, rngs=rngs) if gated else None
    self.norm = (
      lookup(NORMS, hidden_norm, "norm")(hidden_dim, norm_eps=norm_eps, dtype=dtype)
      if hidden_norm
      else None
    )
    self.activation = activation

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., width] -> [..., width]."""
    up = shard_batch(self.up(x))
    if self.gate is None:
      return remat(lambda hidden: self._down(activate(hidden, self.activation)))(up)
    gate = shard_batch(self.gate(x))
    return remat(lambda gate, up: self._down(activate(gate, self.activation) * up))(gate, up)

  def _down(self, hidden):
    return self.down(hidden if self.norm is None else self.norm(hidden))


def activate(x: jax.Array, activation: str) -> jax.Array:
  """Applies a named activation, computed in float32 and returned in the dtype of x."""
  return ACTIVATIONS[activation](x.astype(jnp.float32)).astype(x.dtype)
