"""The text transformer."""

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax import layers
from clip_jax.errors import UserError
from clip_jax.sharding import on_rows, whole
from clip_jax.target import computed_in
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
    end_token: number of the end token, of which "eot" then takes the first: a text may be padded
      with anything, as Hugging Face pads with the end token itself.
    epsilon: of the norms.
    mask_padding: whether padding is hidden from attention. SigLIP, CLIPA and FLIP show it.
    depth: of the stack; 0 makes it a bag of words, with pool "mean".
    activation, attention, dtype, remat, unroll: as of `Vit`.

  OpenAI's form is causal=True, pool="eot", end_token=49_407, mask_padding=False, epsilon=1e-5,
  activation="quick_gelu" ("gelu" in open_clip's own models), with size "M" beside an image tower of
  size B and "B" beside L. SigLIP's is pool="last", mask_padding=False.

  Source: Radford et al. 2021, sec. 2.4; Zhai et al. 2023 for the form that sees both ways.
  """

  def __init__(self, *, vocabulary: int = 32_000, length: int = 16, size: str = "B",
               causal: bool = False, pool: str = "last", mask_padding: bool = True,
               end_token: int | None = None, epsilon: float = 1e-6,
               width: int | None = None, depth: int | None = None, mlp: int | None = None,
               heads: int | None = None, activation: str = "gelu_tanh", attention: str = "auto",
               dtype: str = "auto", remat: str = "none", unroll: int = 0, rngs: nnx.Rngs):
    dtype = computed_in(dtype)
    if pool not in POOLS:
      raise UserError(f"TextTransformer has no pool {pool!r}; there are {', '.join(POOLS)}.")
    width, depth, mlp, heads = transformer_size(size, width, depth, mlp, heads)
    self.width, self.vocabulary, self.length = width, vocabulary, length
    self.causal, self.pool, self.mask_padding, self.dtype = causal, pool, mask_padding, dtype
    self.end_token = end_token
    self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocabulary, width)))
    self.positions = nnx.Param(0.01 * jax.random.normal(rngs.params(), (length, width)))
    self.stack = layers.blocks(width, depth, heads, mlp, activation=activation, epsilon=epsilon,
                               attention=attention, dtype=dtype, remat=remat, unroll=unroll,
                               rngs=rngs)
    self.norm = layers.LayerNorm(width, epsilon=epsilon, dtype=dtype)
    if pool == "map":
      self.head = layers.MapHead(width, heads, mlp, activation=activation, epsilon=epsilon,
                                 dtype=dtype, rngs=rngs)

  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """int32 [B, L], 0 is padding -> [B, D]."""
    check_length(self.length, tokens)
    real, end = real_tokens(tokens)
    # In float32 up to here, for the gradient of a common token is a sum of very many.
    x = whole(self.embedding[...])[tokens] + self.positions[...]            # [B, L, D]
    x = self.stack(x.astype(self.dtype), self._mask(real))
    if self.pool == "map":
      return on_rows(self.head(self.norm(x), real))
    if self.pool == "last":
      x = x[:, -1]
    elif self.pool == "eot":
      if self.end_token is not None:
        end = jnp.argmax(tokens == self.end_token, axis=1)
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
      mask = jnp.broadcast_to(keys, (real.shape[0], 1, self.length, self.length)) if mask is None \
          else mask & keys
    return mask


def check_length(length: int, tokens: jax.Array) -> None:
  """Raises unless texts have as many tokens as the tower was made for."""
  if tokens.shape[1] != length:
    raise UserError(f"This text tower was made for {length} tokens and got {tokens.shape[1]}. Set "
                    "length of the tower and of the tokenizer to the same.")


def real_tokens(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Which tokens are not padding, bool [B, L], and where the last of them is, int32 [B].

  OpenAI's vocabulary has a word that is number 0 too, so only zeros at the end are padding. A text
  of nothing keeps its first token, for a softmax over nothing is not a number.
  """
  places = jnp.arange(tokens.shape[1])
  end = jnp.max(places * (tokens != 0), axis=1)
  return places <= end[:, None], end
