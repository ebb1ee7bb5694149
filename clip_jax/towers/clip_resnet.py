"""The ResNet of OpenAI's CLIP: BatchNorm, antialiased strides and attention pooling."""

import math
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.cli.values import ImageSize, OneOf, Range, Stages, Width, checked
from clip_jax.errors import UserError
from clip_jax.nn.attention import check_heads
from clip_jax.nn.convolution import conv2d
from clip_jax.nn.layers import BatchNorm, Linear, add_bias
from clip_jax.nn.remat import REMAT_POLICIES, RematPolicy
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.parallel.placement import shard_batch
from clip_jax.towers.sizes import both_sides

# Name -> blocks in each stage, channels of the stem, published image size.
SIZES = {
  "RN50": ((3, 4, 6, 3), 64, 224),
  "RN101": ((3, 4, 23, 3), 64, 224),
  "RN50x4": ((4, 6, 10, 6), 80, 288),
  "RN50x16": ((6, 8, 18, 8), 96, 384),
  "RN50x64": ((3, 15, 36, 10), 128, 448),
}


@checked
class ClipResnet(nnx.Module):
  """Three convolutions, four stages of bottleneck blocks, and attention pooling.

  The output projection of the attention pool is left to the model: use image_projection="affine"
  for OpenAI's form.

  In training, BatchNorm normalises over the global batch, on any number of devices. With
  `train.microbatches` above 1 it normalises over each microbatch instead, and the running averages
  of the microbatches are averaged. The gradient then differs from that without microbatches, so
  keep microbatches large.

  Args:
    size: a name in `SIZES`, overridden by `stages` and `width`.
    stages: blocks in each of the four stages.
    width: channels of the stem; the features have 32 times as many.
    num_heads: number of heads of the attention pool; by default width / 2, for heads of width 64.
    image_size: side, or (height, width), of the images in pixels; the published one by default.
    dtype: dtype the tower computes in, a name in `target.DTYPES`; parameters are always float32.
    remat: rematerialisation policy of a block, a name in `remat.REMAT_POLICIES`.

  Source: Radford et al. 2021, sec. 2.4; He et al. 2019 for the stem, Zhang 2019 for the pools.
  """

  def __init__(
    self,
    *,
    size: Annotated[str, OneOf(SIZES)] = "RN50",
    stages: Stages | None = None,
    width: Annotated[int, Range(2, 2**20)] | None = None,
    num_heads: Width | None = None,
    image_size: ImageSize | None = None,
    dtype: Dtype = "auto",
    remat: RematPolicy = "none",
    rngs: nnx.Rngs,
  ):
    dtype = resolve_dtype(dtype, convolutional=True)
    named = SIZES[size]
    stages = named[0] if stages is None else stages
    width = named[1] if width is None else width
    self.image_size = both_sides(named[2] if image_size is None else image_size)
    # Average pooling would drop an odd last row or column.
    fine = 2 ** (1 + len(stages))
    if any(side % fine for side in self.image_size):
      raise UserError(
        f"ClipResnet downsamples images by {fine}, but {self.image_size[0]} x "
        f"{self.image_size[1]} is not divisible by that. Nearest valid height: "
        f"{max(1, round(self.image_size[0] / fine)) * fine}."
      )
    self.width, self.dtype, self.remat = width * 4 * 2 ** (len(stages) - 1), dtype, remat
    half = width // 2
    make = lambda inputs, outputs, stride: Convolution(
      inputs, outputs, 3, stride=stride, dtype=dtype, rngs=rngs
    )
    self.stem = nnx.List([make(3, half, 2), make(half, half, 1), make(half, width, 1)])
    self.stem_norms = nnx.List([BatchNorm(n, dtype=dtype) for n in (half, half, width)])
    stages_built, channels = [], width
    for i, depth in enumerate(stages):
      stages_built.append(
        nnx.List(
          [
            Bottleneck(
              channels if j == 0 else width * 4 * 2**i,
              width * 2**i,
              stride=2 if i > 0 and j == 0 else 1,
              dtype=dtype,
              rngs=rngs,
            )
            for j in range(depth)
          ]
        )
      )
      channels = width * 4 * 2**i
    self.stages = nnx.List(stages_built)
    self.grid = tuple(side // fine for side in self.image_size)
    self.head = AttentionPool(
      channels, num_heads or max(1, channels // 64), math.prod(self.grid), dtype=dtype, rngs=rngs
    )

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """float [B, H, W, 3] -> [B, D]; training updates the running averages."""
    if keep < 1:
      raise UserError(
        f"keep={keep} drops patches, but a ResNet has none. Set the objective's keep_patches=1, "
        "or train a Vit; to save compute with a ResNet, use smaller images."
      )
    if image.shape[1:3] != self.image_size:
      raise UserError(
        f"ClipResnet expected images of {self.image_size[0]} x "
        f"{self.image_size[1]}, but got {image.shape[1]} x {image.shape[2]}. Set the "
        "tower's image_size and the crop's size to the same value."
      )
    x = image
    for convolution, norm in zip(self.stem, self.stem_norms):
      x = jax.nn.relu(norm(convolution(x), train=train))
    x = average_pool(x)

    def apply(block, x):
      x = block(x, train=train)
      return x, nnx.to_pure_dict(nnx.state(block, nnx.BatchStat))

    if self.remat != "none":
      apply = jax.checkpoint(apply, policy=REMAT_POLICIES[self.remat])
    for stage in self.stages:
      for block in stage:
        x, averages = apply(block, shard_batch(x))
        if train and self.remat != "none":  # jax.checkpoint updated a copy of the averages.
          nnx.update(block, averages)
    B, H, W, C = x.shape
    return shard_batch(self.head(x.reshape(B, H * W, C)))


def average_pool(x: jax.Array) -> jax.Array:
  """2 x 2 average pooling: [B, H, W, C] -> [B, H / 2, W / 2, C]."""
  return nnx.avg_pool(x, (2, 2), strides=(2, 2))


class Convolution(nnx.Module):
  """A convolution without bias, zero-padded by half the kernel size on each side."""

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
    # He et al. 2015, eq. 10, because a ReLU follows.
    self.kernel = nnx.Param(
      jax.random.normal(rngs.params(), (size, size, inputs, outputs))
      * math.sqrt(2 / (size * size * inputs))
    )
    self.stride, self.dtype = stride, dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, inputs] -> [B, H / stride, W / stride, outputs]."""
    pad = self.kernel.shape[0] // 2
    return conv2d(x.astype(self.dtype), self.kernel[...], self.stride, ((pad, pad), (pad, pad)))


class Bottleneck(nnx.Module):
  """A 1x1-3x3-1x1 bottleneck block; average pooling before the last convolution downsamples."""

  def __init__(self, inputs: int, width: int, *, stride: int, dtype: str, rngs: nnx.Rngs):
    make = lambda *of: Convolution(*of, dtype=dtype, rngs=rngs)
    self.convolutions = nnx.List(
      [make(inputs, width, 1), make(width, width, 3), make(width, 4 * width, 1)]
    )
    # The scale of the last norm starts at zero, so that a block starts as the identity.
    self.norms = nnx.List(
      [
        BatchNorm(n, scale=scale, dtype=dtype)
        for n, scale in ((width, 1.0), (width, 1.0), (4 * width, 0.0))
      ]
    )
    changes_shape = stride > 1 or inputs != 4 * width
    self.shortcut = make(inputs, 4 * width, 1) if changes_shape else None
    self.shortcut_norm = BatchNorm(4 * width, dtype=dtype) if changes_shape else None
    self.stride = stride

  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """[B, H, W, inputs] -> [B, H / stride, W / stride, 4 * width]."""
    pool = average_pool if self.stride > 1 else lambda x: x
    y = x
    for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
      y = norm(convolution(pool(y) if i == 2 else y), train=train)
      y = y if i == 2 else jax.nn.relu(y)
    if self.shortcut is not None:
      x = self.shortcut_norm(self.shortcut(pool(x)), train=train)
    return jax.nn.relu(x + y)


class AttentionPool(nnx.Module):
  """Attention pooling: the mean feature attends to itself and all positions of the feature map.

  The heads are concatenated, without an output projection.

  Source: Radford et al. 2021, sec. 2.4.
  """

  def __init__(self, width: int, num_heads: int, positions: int, *, dtype: str, rngs: nnx.Rngs):
    check_heads(width, num_heads)
    init = lambda key, shape: width**-0.5 * jax.random.normal(key, shape)
    self.positions = nnx.Param(init(rngs.params(), (1 + positions, width)))
    self.query = Linear(width, (num_heads, width // num_heads), init=init, dtype=dtype, rngs=rngs)
    self.key_value = Linear(
      width, (2, num_heads, width // num_heads), init=init, dtype=dtype, rngs=rngs
    )
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, D]."""
    x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)  # [B, N + 1, D]
    x = add_bias(x, self.positions[...])
    key_value = self.key_value(x)  # [B, N + 1, 2, h, D/h]
    x = jax.nn.dot_product_attention(
      self.query(x[:, :1]), key_value[:, :, 0], key_value[:, :, 1]
    )  # [B, 1, h, D/h]
    return x.reshape(x.shape[0], -1)
