"""Swin against attention over the whole map with everything outside the window masked."""

from flax import nnx
import numpy as np
import pytest

from clip_jax.config import build
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from clip_jax.towers.swin import WindowAttention
import reference_layers
from tiny_towers import IMAGE_TOWERS, features, pixels, randomised, with_arguments


def attention(p, x, window, shifted):
  """Windowed attention without rolling, padding or splitting: positions see their own window.

  Windows are the squares of a grid that starts at the corner of the map, or half a window before
  it; an axis no longer than a window has only one.
  """
  B, H, W, C = x.shape
  positions = [(i, j) for i in range(H) for j in range(W)]

  def window_of(at, length):
    return 0 if length <= window else (at - (window // 2 if shifted else 0)) // window

  same = [
    [
      (window_of(a[0], H), window_of(a[1], W)) == (window_of(b[0], H), window_of(b[1], W))
      for b in positions
    ]
    for a in positions
  ]
  qkv_kernel, qkv_bias = (np.asarray(p["attention"]["qkv"][k]) for k in ("kernel", "bias"))
  table, flat, out = np.asarray(p["bias"]), x.reshape(B, H * W, C), 0
  for head in range(qkv_kernel.shape[2]):
    q, k, v = (flat @ qkv_kernel[:, i, head] + qkv_bias[i, head] for i in range(3))
    logits = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])  # [B, HW, HW]
    for i, a in enumerate(positions):
      for j, b in enumerate(positions):
        logits[:, i, j] += (
          table[a[0] - b[0] + window - 1, a[1] - b[1] + window - 1, head] if same[i][j] else -np.inf
        )
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    out += (
      weights
      / weights.sum(-1, keepdims=True)
      @ v
      @ np.asarray(p["attention"]["out"]["kernel"])[head]
    )
  return (out + np.asarray(p["attention"]["out"]["bias"])).reshape(x.shape)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
  "window, shape",
  [
    (4, (8, 8)),  # Windows fit.
    (3, (8, 4)),  # Windows do not fit, and the last one is mostly padding.
    (4, (4, 8)),  # One window high, so shifted only horizontally.
    (7, (3, 5)),  # The map is smaller than a window.
    (3, (2, 10)),  # Smaller than a window vertically, padded and shifted horizontally.
  ],
)
def test_windowed_attention_matches_masked_attention(window, shape, shifted):
  ours = randomised(
    lambda rngs: WindowAttention(8, 2, window, shifted=shifted, dtype="float32", rngs=rngs)
  )
  x = np.random.default_rng(0).normal(size=(2, *shape, 8)).astype(np.float32)
  np.testing.assert_allclose(
    features(ours, x), attention(split_state(ours)[1], x, window, shifted), rtol=1e-4, atol=1e-4
  )


def test_swin_matches_its_blocks_written_out():
  spec = with_arguments(IMAGE_TOWERS["swin"], image_size=(13, 18))  # Maps of 7 x 9 and 4 x 5.
  tower, image = randomised(spec), pixels(spec, B=2)
  p = split_state(tower)[1]
  norm = lambda p, x: reference_layers.layer_norm(p, x, 1e-5)
  x = norm(
    p["embedding_norm"], reference_layers.linear(p["embedding"], reference_layers.patches(image, 2))
  )
  for stage, pairs in enumerate((1, 2)):
    if stage:
      x = reference_layers.linear(
        p["mergers"][0], norm(p["norms"][0], reference_layers.patches(x, 2))
      )
    for i in range(pairs):
      for name in ("plain", "shifted"):
        b = reference_layers.block_params(p["stacks"][stage]["blocks"], i)[name]
        x = x + attention(b["attention"], norm(b["norm_attention"], x), 3, name == "shifted")
        x = x + reference_layers.mlp(b["mlp"], norm(b["norm_mlp"], x))
  expected = norm(p["norm"], x).mean((1, 2))
  np.testing.assert_allclose(features(tower, image), expected, rtol=1e-3, atol=1e-4)


def test_invalid_arguments_are_reported():
  spec, rngs = IMAGE_TOWERS["swin"], nnx.Rngs(0)
  with pytest.raises(UserError, match=r"come in pairs.*stages=\(2, 3\) has odd numbers. Use even"):
    build(with_arguments(spec, stages=(2, 3)), rngs=rngs)
  with pytest.raises(UserError, match="width 16 is not divisible by head_width=12.*head_width=4"):
    build(with_arguments(spec, head_width=12), rngs=rngs)
  with pytest.raises(UserError, match="size is 'XL'; Swin expects 'T', 'S', 'B'"):
    build(with_arguments(spec, size="XL"), rngs=rngs)
