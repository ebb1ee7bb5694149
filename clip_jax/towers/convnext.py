"""ConvNeXt: a convolutional network with the design of a vision transformer."""

from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.cli.values import ImageSize, NonNegativeInt, OneOf, Stages, Width, checked
from clip_jax.nn import layers, patches, transformer
from clip_jax.nn.convolution import conv2d
from clip_jax.nn.remat import RematPolicy
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.parallel.placement import replicate, shard_batch
from clip_jax.towers.sizes import both_sides

# Name -> blocks in each of the four stages, channels of the first stage.
SIZES = {
  "T": ((3, 3, 9, 3), 96),
  "S": ((3, 3, 27, 3), 96),
  "B": ((3, 3, 27, 3), 128),
  "L": ((3, 3, 27, 3), 192),
  "XL": ((3, 3, 27, 3), 256),
}
INIT = layers.normal(0.02)


@checked
class ConvNext(nnx.Module):
  """Stages of depthwise-convolution blocks; each halves the resolution and doubles the width.

  Images may have any size: a feature map with an odd side is zero-padded before it is halved.

  Args:
    size: "T", "S", "B", "L" or "XL", overridden by `stages` and `width`.
    stages: blocks in each stage.
    width: channels of the first stage.
    layer_scale: initial value of the learned per-channel scale of each residual branch.
    norm_eps: epsilon of the norms.
    image_size: side, or (height, width), of the images in pixels.
    activation, dtype, remat: as in `Vit`.
    unroll: blocks per iteration of the compiled loop over a stage, as in `Stack`.

  Source: Liu et al. 2022 (A ConvNet for the 2020s), sec. 2 and table 9; without stochastic depth.
  """

  def __init__(
    self,
    *,
    size: Annotated[str, OneOf(SIZES)] = "T",
    stages: Stages | None = None,
    width: Width | None = None,
    layer_scale: float = 1e-6,
    norm_eps: layers.NormEps = 1e-6,
    image_size: ImageSize = 224,
    activation: layers.Activation = "gelu",
    dtype: Dtype = "auto",
    remat: RematPolicy = "none",
    unroll: NonNegativeInt = 0,
    rngs: nnx.Rngs,
  ):
    self.dtype = dtype = resolve_dtype(dtype)
    named = SIZES[size]
    stages, width = tuple(stages or named[0]), width or named[1]
    self.image_size, self.width = both_sides(image_size), width * 2 ** (len(stages) - 1)
    self.stem = layers.Linear(4 * 4 * 3, width, init=INIT, dtype=dtype, rngs=rngs)
    make_norm = lambda width: layers.LayerNorm(width, norm_eps=norm_eps, dtype=dtype)
    self.stem_norm = make_norm(width)
    stacks, norms, reductions = [], [], []
    for i, depth in enumerate(stages):
      channels = width * 2**i
      if i:
        norms.append(make_norm(channels // 2))
        reductions.append(layers.Linear(2 * channels, channels, init=INIT, dtype=dtype, rngs=rngs))
      make = lambda rngs: ConvNextBlock(
        channels, layer_scale, norm_eps, activation=activation, dtype=dtype, rngs=rngs
      )
      stacks.append(transformer.Stack(make, depth, remat=remat, unroll=unroll, rngs=rngs))
    self.stacks = nnx.List(stacks)
    self.norms, self.reductions = nnx.List(norms), nnx.List(reductions)
    self.norm = make_norm(self.width)

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """float [B, H, W, 3] -> [B, D]."""
    patches.check_no_patch_dropout(keep, "a ConvNext needs all of them for its convolutions")
    x = self.stacks[0](
      self.stem_norm(self.stem(patches.patchify_map(image, 4)))
    )  # [B, H/4, W/4, width]
    for norm, reduction, stack in zip(self.norms, self.reductions, self.stacks[1:]):
      x = stack(
        reduction(patches.patchify_map(norm(x), 2))
      )  # Half the resolution, twice the width.
    return shard_batch(self.norm(x.mean(axis=(1, 2))))


class ConvNextBlock(nnx.Module):
  """A residual block: depthwise 7x7 convolution, norm, MLP and a learned scale per channel."""

  def __init__(
    self,
    width: int,
    layer_scale: float,
    norm_eps: float,
    *,
    activation: str,
    dtype: str,
    rngs: nnx.Rngs,
  ):
    self.kernel = nnx.Param(INIT(rngs.params(), (7, 7, 1, width)))
    self.bias = nnx.Param(jnp.zeros(width))
    self.norm = layers.LayerNorm(width, norm_eps=norm_eps, dtype=dtype)
    self.mlp = layers.Mlp(
      width, 4 * width, activation=activation, init=INIT, dtype=dtype, rngs=rngs
    )
    self.scale = nnx.Param(jnp.full(width, layer_scale))
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]."""
    # FSDP shards the kernel by channels, and with that sharding its gradient would gather the
    # feature maps of all devices.
    y = shard_batch(conv2d(x, replicate(self.kernel[...]), groups=x.shape[-1]))
    y = self.mlp(self.norm(layers.add_bias(y, self.bias[...])))
    return shard_batch(x + layers.broadcast_param(self.scale[...], y.shape, y.dtype) * y)
