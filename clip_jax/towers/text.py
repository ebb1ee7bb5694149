"""The text transformer."""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.cli.values import (
  ContextLength,
  Depth,
  NonNegativeFloat,
  NonNegativeInt,
  PositiveInt,
  Width,
  checked,
)
from clip_jax.errors import UserError
from clip_jax.nn import attention_pooling, layers, rotary as rotary_lib, transformer
from clip_jax.nn.attention import AttentionKind
from clip_jax.nn.matmul import activation_dtype
from clip_jax.nn.remat import RematPolicy
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.parallel.placement import all_gather_param, shard_batch
from clip_jax.towers.sizes import TransformerSize, transformer_size


@checked
class TextTransformer(nnx.Module):
  """Token and position embeddings, transformer blocks, a norm, and pooling.

  Args:
    vocab_size: vocabulary size of the tokenizer.
    context_length: context length of the tokenizer, L.
    size: a name in `towers.sizes`, overridden by `width`, `depth`, `mlp_dim` and `num_heads`.
    causal: whether tokens attend only to themselves and earlier tokens, as in OpenAI's CLIP.
    pool: "last", position L - 1 even if it is padding, as in SigLIP; "eot", the last token that is
      not padding (the end token, if the tokenizer writes one); "mean", the mean of the tokens that
      are not padding; "map", a learned query that attends to them, or to all tokens without
      `mask_padding`; "argmax", the largest token id, which is the end token in OpenAI's vocabulary;
      "gap" and "max", the mean and the maximum over all positions after the norm, as big_vision's
      "mean" and "max"; "first", position 0, which is the class token of BERT; "cls", a learned
      token after the text, as CoCa in open_clip. "cls" ignores `mask_padding`: as there, tokens
      after the first padding are masked, wherever it is.
    pad_id: id of the padding. Only trailing padding counts, except for "cls".
    eos_id: id of the end token. If set, "eot" uses its first occurrence, so texts may be padded
      with any token, even the end token itself, as Hugging Face does.
    positions: position embeddings, "learned" or "none".
    registers: number of learned tokens without positions before the text, left out of pooling.
    rotary: whether to rotate queries and keys by the position of their token.
    pre_norm: whether to add a norm before the blocks, as BERT does.
    norm, norm_order, qk_norm, sub_norm, layer_scale, gated_mlp: as in `Vit`.
    norm_eps: epsilon of the norms.
    mask_padding: whether padding is masked in attention. SigLIP, CLIPA and FLIP do not mask it.
    depth: number of blocks; with 0 and pool="mean" the tower is a bag of words.
    activation, attention, dtype, remat, unroll: as in `Vit`.

  For OpenAI's form, set causal=True, pool="eot", eos_id=49_407, mask_padding=False,
  norm_eps=1e-5 and activation="quick_gelu" ("gelu" in open_clip's own models), with size "M" for an
  image tower of size B and "B" for L. For SigLIP's, set pool="last" and mask_padding=False. For
  BERT's, set pre_norm=True, norm_order="post", norm_eps=1e-12, activation="gelu" and pool="first"
  or "mean".

  Source: Radford et al. 2021, sec. 2.4; Zhai et al. 2023 for the bidirectional form.
  """

  def __init__(
    self,
    *,
    vocab_size: PositiveInt = 32_000,
    context_length: ContextLength = 16,
    size: TransformerSize = "B",
    causal: bool = False,
    pool: Literal["last", "eot", "argmax", "mean", "map", "gap", "max", "first", "cls"] = "last",
    mask_padding: bool = True,
    pad_id: NonNegativeInt = 0,
    eos_id: NonNegativeInt | None = None,
    positions: Literal["learned", "none"] = "learned",
    registers: NonNegativeInt = 0,
    rotary: bool = False,
    pre_norm: bool = False,
    norm: layers.Norm = "layer",
    norm_order: transformer.NormOrder = "pre",
    qk_norm: bool = False,
    sub_norm: bool = False,
    layer_scale: NonNegativeFloat | None = None,
    gated_mlp: bool = False,
    norm_eps: layers.NormEps = 1e-6,
    width: Width | None = None,
    depth: Depth | None = None,
    mlp_dim: Width | None = None,
    num_heads: Width | None = None,
    activation: layers.Activation = "gelu_tanh",
    attention: AttentionKind = "auto",
    dtype: Dtype = "auto",
    remat: RematPolicy = "none",
    unroll: NonNegativeInt = 0,
    rngs: nnx.Rngs,
  ):
    dtype = resolve_dtype(dtype)
    width, depth, mlp_dim, num_heads = transformer_size(size, width, depth, mlp_dim, num_heads)
    self.width, self.vocab_size, self.context_length = width, vocab_size, context_length
    self.causal, self.pool, self.mask_padding, self.dtype = causal, pool, mask_padding, dtype
    self.eos_id, self.pad_id = eos_id, pad_id
    self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocab_size, width)))
    own = pool == "cls"  # One more position.
    self.positions = (
      nnx.Param(0.01 * jax.random.normal(rngs.params(), (context_length + own, width)))
      if positions == "learned"
      else None
    )
    make_norm = lambda: layers.NORMS[norm](width, norm_eps=norm_eps, dtype=dtype)
    self.pre_norm = make_norm() if pre_norm else None
    self.stack = transformer.transformer_stack(
      width,
      depth,
      num_heads,
      mlp_dim,
      activation=activation,
      norm=norm,
      norm_eps=norm_eps,
      norm_order=norm_order,
      qk_norm=qk_norm,
      sub_norm=sub_norm,
      layer_scale=layer_scale,
      gated_mlp=gated_mlp,
      attention=attention,
      dtype=dtype,
      remat=remat,
      unroll=unroll,
      rngs=rngs,
    )
    self.norm = make_norm() if norm_order != "post" else None
    if pool == "map":
      self.head = attention_pooling.MapHead(
        width, num_heads, mlp_dim, activation=activation, norm_eps=norm_eps, dtype=dtype, rngs=rngs
      )
    small = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), (*shape, width)))
    self.class_token = small() if own else None
    self.registers = small(registers) if registers else None
    self.prefix, self.rotary, self.head_dim = registers, rotary, width // num_heads
    if rotary:
      rotary_lib.text_rotation(context_length, self.head_dim)  # An error, if it is impossible.

  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Token ids, int32 [B, L], padded with `pad_id` -> [B, D]; or fewer columns, `cut_padding`."""
    if not (self.ignores_padding and tokens.shape[1] < self.context_length):
      check_context_length(self.context_length, tokens)
    real, end = real_tokens(tokens, self.pad_id)
    x = self._embedded(tokens)  # [B, L', D]
    if self.rotary:
      rotation = rotary_lib.text_rotation(x.shape[1], self.head_dim, prefix=self.prefix)
      x = self.stack(x, self._mask(tokens, real), rotation)
    else:
      x = self.stack(x, self._mask(tokens, real))
    x = x[:, self.prefix :] if self.prefix else x
    return shard_batch(self._pooled(x, tokens, real, end))

  def _embedded(self, tokens):
    """Token ids [B, L] -> the inputs of the blocks, [B, registers + L (+ 1), D]."""
    # Look up in float32, because the gradient of a common token is a sum of very many terms.
    x = all_gather_param(self.embedding[...])[tokens]
    if self.class_token is not None:
      token = layers.broadcast_param(self.class_token[...], (len(x), 1, self.width), x.dtype)
      x = jnp.concatenate([x, token], axis=1)
    if self.positions is not None:
      x = x + self.positions[: x.shape[1]]
    if self.registers is not None:
      registers = layers.broadcast_param(
        self.registers[...], (len(x), self.prefix, self.width), x.dtype
      )
      x = jnp.concatenate([registers, x], axis=1)
    x = x.astype(activation_dtype(self.dtype))
    return x if self.pre_norm is None else self.pre_norm(x)

  def _pooled(self, x, tokens, real, end):
    """Outputs of the blocks, [B, L (+ 1), D] -> features [B, D]."""
    norm = self.norm or (lambda x: x)
    if self.pool == "map":
      return self.head(norm(x), real if self.mask_padding else None)
    if self.pool in ("gap", "max"):
      x = norm(x)
      return x.mean(axis=1) if self.pool == "gap" else x.max(axis=1)
    if self.pool in ("last", "cls", "first"):
      x = x[:, 0 if self.pool == "first" else -1]
    elif self.pool in ("eot", "argmax"):
      if self.pool == "argmax":
        end = jnp.argmax(tokens, axis=1)
      elif self.eos_id is not None:
        end = jnp.argmax(tokens == self.eos_id, axis=1)
      x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    else:
      # Average before the norm, so that each token's magnitude acts as its weight.
      x = (x * real[:, :, None]).sum(axis=1) / real.sum(axis=1)[:, None].astype(x.dtype)
    return norm(x)

  @property
  def ignores_padding(self) -> bool:
    """Whether the features do not depend on padding after the end of a text."""
    if self.pool in ("last", "gap", "max", "cls"):
      return False  # All positions count, or the place of the last one.
    return self.mask_padding or (self.causal and self.pool != "map")

  def cut_padding(self, tokens: np.ndarray) -> np.ndarray:
    """Cuts columns that are padding in every text, if that does not change the features.

    Args:
      tokens: int32 [B, L], padded with `pad_id`.

    Returns:
      int32 [B, l], where l is the smallest of 16, 32, 64, ... and L that is enough, so that few
      programs are compiled.
    """
    if not self.ignores_padding or not tokens.size:
      return tokens
    used = (np.arange(tokens.shape[1]) * (tokens != self.pad_id)).max() + 1
    if self.causal and self.pool == "eot" and self.eos_id is not None:
      used = (tokens == self.eos_id).argmax(1).max() + 1
    return tokens[:, : min(tokens.shape[1], max(16, 1 << int(used - 1).bit_length()))]

  def _mask(self, tokens, real):
    """Attention mask, bool [B or 1, 1, L', L'], True where a query may attend; None for no mask."""
    keys = real if self.mask_padding else None
    if self.pool == "cls":
      # As in open_clip, the mask of padding is one token late, so the end token always counts.
      keys = jnp.pad(tokens != self.pad_id, ((0, 0), (1, 0)), constant_values=True)
    extra = self.prefix + (self.pool == "cls")
    B, L = tokens.shape[0], tokens.shape[1] + extra
    mask = jnp.tril(jnp.ones((1, 1, L, L), bool)) if self.causal else None
    if keys is not None:
      keys = jnp.pad(keys, ((0, 0), (self.prefix, 0)), constant_values=True)[:, None, None, :]
      mask = jnp.broadcast_to(keys, (B, 1, L, L)) if mask is None else mask & keys
    return mask


def check_context_length(context_length: int, tokens: jax.Array) -> None:
  """Raises `UserError` unless texts have the tower's context length."""
  if tokens.shape[1] != context_length:
    raise UserError(
      f"The text tower expected {context_length} tokens per text, but got {tokens.shape[1]}. "
      "Set the context_length of the tower and of the tokenizer to the same value."
    )


def real_tokens(tokens: jax.Array, pad_id: int = 0) -> tuple[jax.Array, jax.Array]:
  """Returns the mask of tokens that are not padding, bool [B, L], and the last one's index [B].

  Only trailing padding counts, because id 0 is also a word in OpenAI's vocabulary. An empty text
  keeps its first token, because a softmax over no tokens is NaN.
  """
  positions = jnp.arange(tokens.shape[1])
  end = jnp.max(positions * (tokens != pad_id), axis=1)
  return positions <= end[:, None], end
