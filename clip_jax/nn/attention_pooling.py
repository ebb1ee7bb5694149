"""Pooling by attention: a learned query attends to all tokens."""

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.nn.attention import check_heads
from clip_jax.nn.layers import LayerNorm, Linear, Mlp, broadcast_param, glorot
from clip_jax.nn.matmul import activation_dtype
from clip_jax.nn.remat import remat


class AttentionPool(nnx.Module):
  """Multi-head attention of one learned query to all tokens, and a norm.

  Args:
    inputs: width of the tokens.
    width: width of the query and of the result.

  Source: Yu et al. 2022 (CoCa), sec. 3.2, as in open_clip: no MLP and no residual.
  """

  def __init__(
    self,
    inputs: int,
    width: int,
    num_heads: int,
    *,
    norm_eps: float = 1e-6,
    dtype: str = "float32",
    rngs: nnx.Rngs,
  ):
    check_heads(width, num_heads)
    heads = (num_heads, width // num_heads)
    self.probe = nnx.Param(glorot(1, width)(rngs.params(), (width,)))
    self.query = Linear(width, heads, dtype=dtype, rngs=rngs)
    self.key_value = Linear(inputs, (2, *heads), init=glorot(inputs, width), dtype=dtype, rngs=rngs)
    self.out = Linear(heads, width, dtype=dtype, rngs=rngs)
    self.norm = LayerNorm(width, norm_eps=norm_eps, dtype=dtype)

  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """[B, N, inputs] -> [B, width]; `mask`, bool [B, N], is True at the tokens to attend to."""
    return self.norm(self.attend(x, mask))

  def attend(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Computes the attention without the norm, [B, N, inputs] -> [B, width]."""
    B = x.shape[0]
    query = self.query(self.probe[...]).astype(jnp.float32)  # [heads, D/h]
    query = broadcast_param(query, (B, 1, *query.shape), activation_dtype(self.query.dtype))
    key_value = self.key_value(x)  # [B, N, 2, heads, D/h]
    mask = None if mask is None else mask[:, None, None, :]
    return self.out(
      remat(jax.nn.dot_product_attention)(query, key_value[:, :, 0], key_value[:, :, 1], None, mask)
    )[:, 0]


class MapHead(AttentionPool):
  """Multi-head attention pooling: one learned query attends to all tokens; then a residual MLP.

  Source: Zhai et al. 2022 (Scaling ViT), sec. 3.2, as in big_vision: no residual around attention.
  """

  def __init__(
    self,
    width: int,
    num_heads: int,
    mlp_dim: int,
    *,
    activation: str = "gelu_tanh",
    norm_eps: float = 1e-6,
    dtype: str = "float32",
    rngs: nnx.Rngs,
  ):
    super().__init__(width, width, num_heads, norm_eps=norm_eps, dtype=dtype, rngs=rngs)
    self.mlp = Mlp(width, mlp_dim, activation=activation, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """[B, N, D] -> [B, D]; `mask`, bool [B, N], is True at the tokens to attend to."""
    x = self.attend(x, mask)
    return x + self.mlp(self.norm(x))
