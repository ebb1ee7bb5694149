"""The text transformer."""


from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax import layers
from clip_jax.errors import UserError
from clip_jax.sharding import on_rows, whole
from clip_jax.towers.sizes import transformer_size

POOLS = ("last", "eot", "mean", "map")


class TextTransformer(nnx.Module):
  """Token embeddings, learned positions, a stack of pre-norm blocks, a norm, and one vector.

  Args:
    vocabulary: number of tokens; the tokenizer's.
    length: tokens of a text, L; the tokenizer's.
    size: a name in `towers.sizes`; `width`, `depth`, `mlp`, `heads` replace its numbers.
    causal: each token sees only those before it, as in OpenAI's CLIP.
    pool: "last", position L - 1 whatever stands there, as SigLIP's; "eot", the last token that is
      not padding (the end token, where the tokenizer writes one); "mean", of the tokens that are
      not padding; "map", attention of a learned query to those.
    mask_padding: whether padding is hidden from attention. SigLIP, CLIPA and FLIP show it.
    depth: of the stack; 0 makes it a bag of words, with pool "mean".
    activation, dtype, remat, unroll: as of `Vit`.

  Source: Radford et al. 2021, sec. 2.4; Zhai et al. 2023 for the form that sees both ways.
  """

  def __init__(self, *, vocabulary: int = 32_000, length: int = 16, size: str = "B",
               causal: bool = False, pool: str = "last", mask_padding: bool = True,
               width: int | None = None, depth: int | None = None, mlp: int | None = None,
               heads: int | None = None, activation: str = "gelu_tanh", dtype: str = "bfloat16",
               remat: str = "none", unroll: int = 1, rngs: nnx.Rngs):
    if pool not in POOLS:
      raise UserError(f"TextTransformer has no pool {pool!r}; there are {', '.join(POOLS)}.")
    width, depth, mlp, heads = transformer_size(size, width, depth, mlp, heads)
    self.width, self.vocabulary, self.length = width, vocabulary, length
    self.causal, self.pool, self.mask_padding, self.dtype = causal, pool, mask_padding, dtype
    self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocabulary, width)))
    self.positions = nnx.Param(0.01 * jax.random.normal(rngs.params(), (length, width)))
    self.stack = layers.blocks(width, depth, heads, mlp, activation=activation, dtype=dtype,
                               remat=remat, unroll=unroll, rngs=rngs)
    self.norm = layers.LayerNorm(width, dtype=dtype)
    if pool == "map":
      self.head = layers.MapHead(width, heads, mlp, activation=activation, dtype=dtype, rngs=rngs)

  def __call__(self, tokens, *, train=False):
    """int32 [B, L], 0 is padding -> [B, D]."""
    if tokens.shape[1] != self.length:
      raise UserError(f"This text tower was made for {self.length} tokens and got "
                      f"{tokens.shape[1]}. Set length of the tower and of the tokenizer to the same.")
    # OpenAI's vocabulary has a word that is number 0 too, so only zeros at the end are padding. A
    # text of nothing keeps its first token, for a softmax over nothing is not a number.
    end = jnp.max(jnp.arange(self.length) * (tokens != 0), axis=1)          # [B]
    real = jnp.arange(self.length) <= end[:, None]                          # [B, L]
    # In float32 up to here, for the gradient of a common token is a sum of very many.
    x = whole(self.embedding[...])[tokens] + self.positions[...]            # [B, L, D]
    x = self.stack(x.astype(self.dtype), self._mask(real))
    if self.pool == "map":
      return on_rows(self.head(self.norm(x), real))
    if self.pool == "last":
      x = x[:, -1]
    elif self.pool == "eot":
      x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    else:
      # Before the norm, so that a token's length says how much it matters.
      x = (x * real[:, :, None]).sum(axis=1) / real.sum(axis=1)[:, None].astype(x.dtype)
    return on_rows(self.norm(x))

  def _mask(self, real):
    """Where a query may look, bool [B or 1, 1, L, L], or None for everywhere."""
    mask = jnp.tril(jnp.ones((1, 1, self.length, self.length), bool)) if self.causal else None
    if self.mask_padding:
      keys = real[:, None, None, :]
      mask = jnp.broadcast_to(keys, (len(real), 1, self.length, self.length)) if mask is None \
          else mask & keys
    return mask
