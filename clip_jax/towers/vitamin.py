"""ViTamin: a vision transformer on the features of convolutions."""

from typing import Annotated, Any, Literal

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.cli.values import Depth, ImageSize, Length, NonNegativeInt, Width, checked
from clip_jax.nn import layers, patches, transformer
from clip_jax.nn.attention import AttentionKind
from clip_jax.nn.convolution import conv2d
from clip_jax.nn.remat import RematPolicy
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.parallel.placement import replicate, shard_batch
from clip_jax.towers.sizes import both_sides, patch_grid

Two = Annotated[tuple[Width, ...], Length(2)]
_HALVED = ((1, 1), (1, 1))  # Padding of a 3 x 3 convolution, as in PyTorch.


@checked
class Vitamin(nnx.Module):
  """A convolutional stem, two stages of inverted bottlenecks, and transformer blocks with GeGLU.

  The features are the mean of the tokens, each of 16 x 16 pixels, and then a norm.

  Args:
    image_size: side, or (height, width), of the images in pixels, multiples of 16.
    stages: number of bottlenecks in both stages.
    channels: channels of both stages; the stem has those of the first.
    width, depth, mlp_dim, num_heads: of the transformer.
    positions: position embeddings, "learned" or "none" (ViTamin-XL).
    attention, dtype, remat, unroll: as in `Vit`.

  Source: Chen et al. 2024 (ViTamin), sec. 4, as in timm; the defaults are ViTamin-S.
  """

  def __init__(
    self,
    *,
    image_size: ImageSize = 224,
    stages: Two = (2, 4),
    channels: Two = (64, 128),
    width: Width = 384,
    depth: Depth = 14,
    mlp_dim: Width = 768,
    num_heads: Width = 6,
    positions: Literal["learned", "none"] = "learned",
    attention: AttentionKind = "auto",
    dtype: Dtype = "auto",
    remat: RematPolicy = "none",
    unroll: NonNegativeInt = 0,
    rngs: nnx.Rngs,
  ):
    self.dtype = dtype = resolve_dtype(dtype)
    self.image_size, self.width = both_sides(image_size), width
    self.grid = patch_grid(self.image_size, 16)
    form: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    first = channels[0]
    self.stem = nnx.List([Conv(3, first, **form), Conv(first, first, **form)])
    self.stem_norm = layers.LayerNorm(first, dtype=dtype)
    made = []
    for i, (blocks, out) in enumerate(zip(stages, channels)):
      inputs = [first if i == 0 else channels[0], *[out] * (blocks - 1)]
      made.append(
        nnx.List([Bottleneck(n, out, 2 if j == 0 else 1, **form) for j, n in enumerate(inputs)])
      )
    self.stages = nnx.List(made)
    self.reduction_norm = layers.LayerNorm(channels[1], dtype=dtype)
    self.reduction = Conv(channels[1], width, **form)
    N = self.grid[0] * self.grid[1]
    self.positions = (
      nnx.Param(0.02 * jax.random.normal(rngs.params(), (N, width)))
      if positions == "learned"
      else None
    )
    make = lambda rngs: VitaminBlock(
      width, num_heads, mlp_dim, attention=attention, dtype=dtype, rngs=rngs
    )
    self.stack = transformer.Stack(make, depth, remat=remat, unroll=unroll, rngs=rngs)
    self.norm = layers.LayerNorm(width, dtype=dtype)

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """float [B, H, W, 3] -> [B, D]."""
    patches.check_no_patch_dropout(keep, "a Vitamin needs all of them for its convolutions")
    x = self.stem[0](image.astype(self.dtype), stride=2)
    x = self.stem[1](layers.activate(self.stem_norm(x), "gelu"))
    for stage in self.stages:
      for block in stage:
        x = block(x)
    x = self.reduction(self.reduction_norm(x), stride=2)  # [B, H / 16, W / 16, D]
    x = x.reshape(len(x), -1, self.width)
    x = x if self.positions is None else layers.add_bias(x, self.positions[...])
    x = self.stack(x)
    return shard_batch(self.norm(x.mean(axis=1)))


class Conv(nnx.Module):
  """A 3 x 3 convolution with a bias; padded by one pixel on each side."""

  def __init__(
    self, inputs: int, outputs: int, groups: int = 1, *, dtype: str = "float32", rngs: nnx.Rngs
  ):
    shape = (3, 3, inputs // groups, outputs)
    init = layers.normal((2 * groups / (9 * outputs)) ** 0.5)
    self.kernel = nnx.Param(init(rngs.params(), shape))
    self.bias = nnx.Param(jnp.zeros(outputs))
    self.groups, self.dtype = groups, dtype

  def __call__(self, x: jax.Array, stride: int = 1) -> jax.Array:
    """[B, H, W, inputs] -> [B, H / stride, W / stride, outputs]."""
    kernel = replicate(self.kernel[...]) if self.groups > 1 else self.kernel[...]
    x = conv2d(x.astype(self.dtype), kernel, stride, _HALVED, self.groups)
    return shard_batch(layers.add_bias(x, self.bias[...]))


class Bottleneck(nnx.Module):
  """A pre-norm inverted bottleneck: 1 x 1 to four times the channels, depthwise 3 x 3, 1 x 1."""

  def __init__(self, inputs: int, outputs: int, stride: int, *, dtype: str, rngs: nnx.Rngs):
    self.norm = layers.LayerNorm(inputs, dtype=dtype)
    self.expand = layers.Linear(inputs, 4 * outputs, dtype=dtype, rngs=rngs)
    self.depthwise = Conv(4 * outputs, 4 * outputs, 4 * outputs, dtype=dtype, rngs=rngs)
    self.project = layers.Linear(4 * outputs, outputs, dtype=dtype, rngs=rngs)
    self.shortcut = (
      layers.Linear(inputs, outputs, dtype=dtype, rngs=rngs) if inputs != outputs else None
    )
    self.stride = stride

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, inputs] -> [B, H / stride, W / stride, outputs]."""
    y = layers.activate(self.expand(self.norm(x)), "gelu")
    y = self.project(layers.activate(self.depthwise(y, stride=self.stride), "gelu"))
    x = _mean_of_neighbours(x) if self.stride == 2 else x
    return y + (x if self.shortcut is None else self.shortcut(x))


def _mean_of_neighbours(x):
  """Averages 3 x 3 pixels around every second one, without those outside."""
  sums = lambda x: jax.lax.reduce_window(
    x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
  )
  wide = x.astype(jnp.float32)
  return (sums(wide) / sums(jnp.ones((1, *x.shape[1:3], 1)))).astype(x.dtype)


class GegluMlp(nnx.Module):
  """A norm, and an MLP whose hidden units are gated by a GELU."""

  def __init__(self, width: int, hidden_dim: int, *, dtype: str, rngs: nnx.Rngs):
    self.input_norm = layers.LayerNorm(width, dtype=dtype)
    self.mlp = layers.Mlp(width, hidden_dim, activation="gelu", gated=True, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    return self.mlp(self.input_norm(x))


class VitaminBlock(transformer.Block):
  """A transformer block with a `GegluMlp`."""

  def __init__(
    self, width: int, num_heads: int, mlp_dim: int, *, attention: str, dtype: str, rngs: nnx.Rngs
  ):
    super().__init__(width, num_heads, mlp_dim, attention=attention, dtype=dtype, rngs=rngs)
    self.mlp = GegluMlp(width, mlp_dim, dtype=dtype, rngs=rngs)
