"""A block of a text decoder, which attends to the tokens before and to those of an image."""

from flax import nnx
import jax

from clip_jax.nn.attention import check_heads
from clip_jax.nn.layers import LayerNorm, Linear, Mlp, glorot
from clip_jax.nn.remat import remat
from clip_jax.nn.transformer import Attention
from clip_jax.parallel.placement import shard_batch


class CrossAttention(nnx.Module):
  """Multi-head attention of one sequence to another, the memory.

  Args:
    width: width of the sequence, D.
    memory_width: width of the memory.
    num_heads: number of heads, a divisor of D.
  """

  def __init__(self, width: int, memory_width: int, num_heads: int, *, dtype: str, rngs: nnx.Rngs):
    check_heads(width, num_heads)
    heads = (num_heads, width // num_heads)
    self.query = Linear(width, heads, dtype=dtype, rngs=rngs)
    init = glorot(memory_width, width)  # As for two separate kernels.
    self.key_value = Linear(memory_width, (2, *heads), init=init, dtype=dtype, rngs=rngs)
    self.out = Linear(heads, width, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
    """[B, L, D] and [B, N, memory_width] -> [B, L, D]."""
    key_value = shard_batch(self.key_value(memory))  # [B, N, 2, heads, D/h]
    attend = remat(jax.nn.dot_product_attention)
    return self.out(attend(self.query(x), key_value[:, :, 0], key_value[:, :, 1]))


class DecoderBlock(nnx.Module):
  """A pre-norm block of self-attention, cross-attention and an MLP."""

  def __init__(
    self,
    width: int,
    memory_width: int,
    num_heads: int,
    mlp_dim: int,
    *,
    activation: str = "gelu_tanh",
    dtype: str = "float32",
    rngs: nnx.Rngs,
  ):
    self.norm_attention = LayerNorm(width, dtype=dtype)
    self.attention = Attention(width, num_heads, dtype=dtype, rngs=rngs)
    self.norm_cross = LayerNorm(width, dtype=dtype)
    self.cross = CrossAttention(width, memory_width, num_heads, dtype=dtype, rngs=rngs)
    self.norm_mlp = LayerNorm(width, dtype=dtype)
    self.mlp = Mlp(width, mlp_dim, activation=activation, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, mask: jax.Array, memory: jax.Array) -> jax.Array:
    """[B, L, D] -> [B, L, D].

    Args:
      mask: bool [B or 1, 1, L, L], True where a token may attend.
      memory: [B, N, memory_width].
    """
    x = x + self.attention(self.norm_attention(x), mask)
    x = x + self.cross(self.norm_cross(x), memory)
    return shard_batch(x + self.mlp(self.norm_mlp(x)))
