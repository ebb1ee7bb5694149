"""ResNets with group normalisation and weight standardisation instead of BatchNorm, as in BiT."""

import math
from typing import Annotated, Literal

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from clip_jax.cli.values import ImageSize, NonNegativeInt, OneOf, Stages, Width, checked
from clip_jax.errors import UserError
from clip_jax.nn.convolution import conv2d
from clip_jax.nn.patches import check_no_patch_dropout
from clip_jax.nn.remat import REMAT_POLICIES, RematPolicy, remat
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.nn.transformer import Stack
from clip_jax.parallel.placement import shard_batch
from clip_jax.towers.sizes import both_sides

# Layers -> bottleneck blocks in each of the four stages.
DEPTHS = {
  26: (2, 2, 2, 2),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}


@checked
class BitResnet(nnx.Module):
  """A pre-activation ResNet; each stage halves the resolution and doubles the width.

  Examples do not interact, so microbatches and the number of devices do not change the gradient.

  Args:
    layers: 26, 50, 101 or 152; ignored if `stages` is given.
    stages: blocks in each stage.
    width: channels of the first stage (a bottleneck block's output has four times as many).
    block: "bottleneck", 1x1-3x3-1x1; or "basic", 3x3-3x3, for small images.
    stem: "large", a 7x7 convolution and max pooling, which downsample by 4; or "small", a 3x3
      convolution that downsamples by 2, for small images.
    groups: number of groups of each group normalisation.
    pool: "gap", global average pooling; or "flat", which flattens the last feature map. "flat"
      keeps positions, which helps with centred objects, but fixes the image size.
    image_size: side, or (height, width), of the images in pixels.
    dtype: dtype the tower computes in, a name in `target.DTYPES`; parameters are always float32.
    remat: rematerialisation policy of a block, a name in `remat.REMAT_POLICIES`.
    unroll: blocks per iteration of the compiled loop over a stage, as in `Stack`.

  Source: Kolesnikov et al. 2020 (BiT), sec. 3.1 and 4.1, after He et al. 2016 (v2).
  """

  def __init__(
    self,
    *,
    layers: Annotated[int, OneOf(DEPTHS)] | None = 50,
    stages: Stages | None = None,
    width: Width = 64,
    block: Literal["basic", "bottleneck"] = "bottleneck",
    stem: Literal["large", "small"] = "large",
    groups: Width = 32,
    pool: Literal["gap", "flat"] = "gap",
    image_size: ImageSize = 224,
    dtype: Dtype = "auto",
    remat: RematPolicy = "none",
    unroll: NonNegativeInt = 0,
    rngs: nnx.Rngs,
  ):
    dtype = resolve_dtype(dtype, convolutional=True)
    if stages is None and layers is None:
      raise UserError(
        f"BitResnet needs layers, one of {', '.join(map(str, DEPTHS))}, or stages, as in "
        "stages=(2, 2, 2)."
      )
    stages = tuple(stages or DEPTHS[layers])
    self.image_size = both_sides(image_size)
    self.stem_kind, self.pool, self.dtype, self.remat = stem, pool, dtype, remat
    size = 7 if stem == "large" else 3
    self.stem = StdConv(3, width, size, stride=2, dtype=dtype, rngs=rngs)
    # The first block of a stage changes the shape; the others are identical and can be stacked.
    firsts, stacks, channels = [], [], width
    for i, depth in enumerate(stages):
      make = lambda inputs, stride, rngs: BLOCKS[block](
        inputs, width * 2**i, stride=stride, groups=groups, dtype=dtype, rngs=rngs
      )
      firsts.append(make(channels, 2 if i else 1, rngs))
      channels = firsts[-1].outputs
      stacks.append(
        Stack(
          lambda rngs: make(channels, 1, rngs), depth - 1, remat=remat, unroll=unroll, rngs=rngs
        )
      )
    self.firsts, self.stacks = nnx.List(firsts), nnx.List(stacks)
    self.norm = GroupNorm(channels, groups, dtype=dtype)
    self.feature_grid = tuple(
      -(-side // ((4 if stem == "large" else 2) * 2 ** (len(stages) - 1)))
      for side in self.image_size
    )
    self.token_width = channels
    self.width = channels * (math.prod(self.feature_grid) if pool == "flat" else 1)

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """float [B, H, W, 3] -> [B, D]."""
    return self.pooled(self._feature_map(image, keep))

  def tokens(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """The positions of the last feature map, float [B, H, W, 3] -> [B, h * w, C]."""
    x = self._feature_map(image, keep)
    return x.reshape(x.shape[0], -1, x.shape[-1])

  def _feature_map(self, image, keep):
    """The last feature map, float [B, H, W, 3] -> [B, h, w, C]."""
    check_no_patch_dropout(keep, "a ResNet has none")
    x = self.stem(image)
    if self.stem_kind == "large":
      x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
    apply = lambda block, x: block(x)
    if self.remat != "none":
      apply = jax.checkpoint(apply, policy=REMAT_POLICIES[self.remat])
    for first, stack in zip(self.firsts, self.stacks):
      x = stack(shard_batch(apply(first, x)))
    x = jax.nn.relu(self.norm(x))
    if self.pool == "flat" and x.shape[1:3] != self.feature_grid:
      raise UserError(
        f'BitResnet with pool="flat" expected images of {self.image_size[0]} x '
        f"{self.image_size[1]}, but got {image.shape[1]} x {image.shape[2]}. Set the "
        "tower's image_size and the crop's size to the same value, or pool=\"gap\"."
      )
    return x

  def pooled(self, x: jax.Array) -> jax.Array:
    """The last feature map, [B, h, w, C] or [B, h * w, C] -> features [B, D]."""
    if self.pool == "gap":
      return shard_batch(x.mean(axis=tuple(range(1, x.ndim - 1))))
    return shard_batch(x.reshape(x.shape[0], -1))


class StdConv(nnx.Module):
  """A convolution without bias and with weight standardisation.

  Each output channel's kernel is normalised to mean 0 and standard deviation fan_in^-0.5.

  Source: Qiao et al. 2019 (weight standardisation), eq. 2 and 3, scaled to preserve the variance.
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    dtype: str = "float32",
    rngs: nnx.Rngs,
  ):
    self.kernel = nnx.Param(
      jax.random.normal(rngs.params(), (size, size, inputs, outputs))
      / math.sqrt(size * size * inputs)
    )
    self.stride, self.dtype = stride, dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, inputs] -> [B, H / stride, W / stride, outputs]."""
    kernel = self.kernel[...]
    fan_in = math.prod(kernel.shape[:3])
    kernel = kernel - kernel.mean((0, 1, 2))
    kernel = kernel * lax.rsqrt(jnp.square(kernel).mean((0, 1, 2)) * fan_in + 1e-8)
    return conv2d(x.astype(self.dtype), kernel, self.stride)


class GroupNorm(nnx.Module):
  """Group normalisation over groups of channels and all positions, computed in float32.

  Source: Wu & He 2018, eq. 7.
  """

  def __init__(self, width: int, groups: int, *, norm_eps: float = 1e-5, dtype: str = "float32"):
    if width % groups:
      raise UserError(
        f"{width} channels cannot be divided into {groups} groups. Set groups to a "
        f"divisor of the width, as in groups={math.gcd(width, groups)}."
      )
    self.scale = nnx.Param(jnp.ones(width))
    self.bias = nnx.Param(jnp.zeros(width))
    self.groups, self.norm_eps, self.dtype = groups, norm_eps, dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]."""

    @remat
    def normalise(x, scale, bias):
      grouped = x.astype(jnp.float32).reshape(*x.shape[:3], self.groups, -1)
      grouped = grouped - grouped.mean((1, 2, 4), keepdims=True)
      grouped = grouped * lax.rsqrt(
        jnp.square(grouped).mean((1, 2, 4), keepdims=True) + self.norm_eps
      )
      return (grouped.reshape(x.shape) * scale + bias).astype(self.dtype)

    return normalise(x, self.scale[...], self.bias[...])


class _Residual(nnx.Module):
  """A pre-activation residual block, x + f(norm(x)); x is projected where f changes the shape."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    convolutions: tuple[tuple[int, int, int, int], ...],
    *,
    groups: int,
    dtype: str,
    rngs: nnx.Rngs,
  ):
    """Args: `convolutions`, the (inputs, outputs, size, stride) of each."""
    make = lambda c: StdConv(c[0], c[1], c[2], stride=c[3], dtype=dtype, rngs=rngs)
    self.outputs = outputs
    self.norms = nnx.List([GroupNorm(c[0], groups, dtype=dtype) for c in convolutions])
    self.convolutions = nnx.List([make(c) for c in convolutions])
    stride = math.prod(c[3] for c in convolutions)
    self.shortcut = make((inputs, outputs, 1, stride)) if stride > 1 or inputs != outputs else None

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, inputs] -> [B, H / stride, W / stride, outputs]."""
    y = jax.nn.relu(self.norms[0](x))
    x = x if self.shortcut is None else self.shortcut(y)
    y = self.convolutions[0](y)
    for norm, convolution in zip(self.norms[1:], self.convolutions[1:]):
      y = convolution(jax.nn.relu(norm(y)))
    return shard_batch(x + y)


class Basic(_Residual):
  """A residual block of two 3x3 convolutions."""

  def __init__(
    self, inputs: int, width: int, *, stride: int, groups: int, dtype: str, rngs: nnx.Rngs
  ):
    super().__init__(
      inputs,
      width,
      ((inputs, width, 3, stride), (width, width, 3, 1)),
      groups=groups,
      dtype=dtype,
      rngs=rngs,
    )


class Bottleneck(_Residual):
  """A residual block of 1x1, 3x3 and 1x1 convolutions, with 4 times as many output channels."""

  def __init__(
    self, inputs: int, width: int, *, stride: int, groups: int, dtype: str, rngs: nnx.Rngs
  ):
    super().__init__(
      inputs,
      4 * width,
      ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)),
      groups=groups,
      dtype=dtype,
      rngs=rngs,
    )


BLOCKS = {"basic": Basic, "bottleneck": Bottleneck}
