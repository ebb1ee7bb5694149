"""Patches of an image, random patch dropout, and fixed position embeddings."""

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.errors import UserError


def patchify(image: jax.Array, size: int) -> jax.Array:
  """Splits images into patches, row by row: [B, H, W, C] -> [B, N, size * size * C].

  A matrix product with the result is a convolution with this stride and kernel size.
  """
  B, H, W, C = image.shape
  if H % size or W % size:
    raise UserError(f"A {H} x {W} image cannot be divided into {size} x {size} patches.")
  image = image.reshape(B, H // size, size, W // size, size, C)
  return image.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, size * size * C)


def patchify_map(x: jax.Array, size: int) -> jax.Array:
  """Splits a feature map into patches, zero-padding its bottom and right edges where needed.

  [B, H, W, C] -> [B, ceil(H / size), ceil(W / size), size * size * C].
  """
  B, H, W, C = x.shape
  x = jnp.pad(x, ((0, 0), (0, -H % size), (0, -W % size), (0, 0)))
  return patchify(x, size).reshape(B, -(-H // size), -(-W // size), size * size * C)


def check_no_patch_dropout(keep: float, why: str) -> None:
  """Raises `UserError` if patches are to be dropped from a tower that needs all of them."""
  if keep < 1:
    raise UserError(
      f"keep={keep} drops patches, but {why}. Set the objective's keep_patches=1, or train a "
      "Vit; to save compute with this tower, use smaller images."
    )


def patch_dropout(x: jax.Array, keep: float, key: jax.Array) -> jax.Array:
  """Keeps an independent random subset of each example's tokens: [B, N, D] -> [B, K, D].

  The tokens come back in random order, so add position embeddings first.

  Args:
    keep: fraction of the tokens kept, see `kept_patches`.
    key: one key per example, [B].
  """
  return jnp.take_along_axis(x, kept_patches(x.shape[1], keep, key)[:, :, None], axis=1)


def kept_patches(N: int, keep: float, key: jax.Array) -> jax.Array:
  """Draws which of N patches are kept, independently for each example: int32 [B, K], unordered.

  K = max(1, int(N * keep)), rounded as in FLIP (Li et al. 2023, sec. 3).

  Args:
    key: one key per example, [B].
  """
  noise = jax.vmap(lambda k: jax.random.uniform(k, (N,)))(key)  # [B, N]
  # The partitioner cannot split lax.top_k and would gather the noise of the whole batch.
  return jnp.argsort(noise, axis=1)[:, : max(1, int(N * keep))]


def sincos2d(rows: int, columns: int, width: int, *, temperature: float = 10_000.0) -> np.ndarray:
  """Fixed 2D sine-cosine position embeddings of a grid, float32 [rows * columns, width].

  Source: Chen et al. 2021 (MoCo v3), as in big_vision, with frequency exponents
  i / (width / 4 - 1). MAE and FLIP divide by width / 4 instead, which gives a different embedding.
  """
  if width % 4 or width < 8:
    raise UserError(
      f"sincos2d positions need a width divisible by 4, not {width}, and of at least 8."
    )
  omega = temperature ** (-np.arange(width // 4) / (width // 4 - 1))
  y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1) * omega  # [N, width / 4] each
  return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)
