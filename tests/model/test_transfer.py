"""Transfer of parameters to another image size or context length."""

import numpy as np
from PIL import Image
import pytest
from scipy import ndimage

from clip_jax.errors import UserError
from clip_jax.model.transfer import adapt_params, overlay, resample_positions

TORCH_5 = (-0.06075, -0.050748, 2.8125, 14.072747, 28.154249)
TORCH_2 = (-0.15625, 18.15625)


def positions(N, D=3, seed=0):
  return np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)


@pytest.mark.parametrize(
  "method, filter", [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
@pytest.mark.parametrize("old, new", [((7, 7), (14, 14)), ((14, 14), (7, 7)), ((4, 6), (5, 9))])
def test_resampling_matches_pillow(method, filter, old, new):
  x = positions(old[0] * old[1])
  got = resample_positions(x, old, new, method=method)
  for d in range(3):
    image = Image.fromarray(x[:, d].reshape(old))  # Mode F; Pillow's filters are antialiased too.
    expected = np.asarray(image.resize(new[::-1], filter))
    np.testing.assert_allclose(got[:, d], expected.reshape(-1), atol=1e-5)


@pytest.mark.parametrize("new", [(7, 9), (3, 2), (1, 4)])
def test_corner_aligned_resampling_matches_scipys_zoom_as_in_big_vision(new):
  x = positions(20).reshape(4, 5, 3)
  expected = ndimage.zoom(x, (new[0] / 4, new[1] / 5, 1), order=1)
  got = resample_positions(x.reshape(20, 3), (4, 5), new, method="corner_bilinear")
  np.testing.assert_allclose(got, expected.reshape(-1, 3), atol=1e-6)


def test_resampling_as_torch_does_without_antialiasing():
  """torch.nn.functional.interpolate(mode="bicubic") of 0, 1, 8, 27 to five and to two cells."""
  x = np.array([[0.0], [1.0], [8.0], [27.0]], np.float32)
  for n, expected in ((5, TORCH_5), (2, TORCH_2)):
    got = resample_positions(x, (1, 4), (1, n), method="torch_bicubic")
    np.testing.assert_allclose(got[:, 0], expected, atol=1e-5)


def test_resampling_to_the_same_grid_changes_nothing():
  np.testing.assert_allclose(
    resample_positions(positions(12), (3, 4), (3, 4)), positions(12), atol=1e-6
  )


def model(grid=(2, 2), length=4, width=3, fill=None):
  make = lambda seed, *shape: (
    np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if fill is None
    else np.full(shape, fill, np.float32)
  )
  return {
    "image": {"positions": make(0, grid[0] * grid[1], 3), "kernel": make(1, 5, width)},
    "text": {"positions": make(2, length, 3)},
  }


def test_everything_but_positions_is_copied():
  trained = model()
  adapted = adapt_params(trained, model((3, 3), 6, fill=7.0), (2, 2), (3, 3))
  np.testing.assert_array_equal(adapted["image"]["kernel"], trained["image"]["kernel"])
  np.testing.assert_allclose(
    adapted["image"]["positions"], resample_positions(trained["image"]["positions"], (2, 2), (3, 3))
  )
  np.testing.assert_array_equal(adapted["text"]["positions"][:4], trained["text"]["positions"])
  assert (adapted["text"]["positions"][4:] == 7).all()
  shorter = adapt_params(trained, model(length=3), (2, 2), (2, 2))
  np.testing.assert_array_equal(shorter["text"]["positions"], trained["text"]["positions"][:3])


def test_a_grid_of_another_shape_but_equal_size_is_resampled():
  wide = adapt_params(model((4, 4)), model((2, 8)), (4, 4), (2, 8))
  np.testing.assert_allclose(
    wide["image"]["positions"],
    resample_positions(model((4, 4))["image"]["positions"], (4, 4), (2, 8)),
  )


def test_class_token_position_is_kept():
  old, new = ({"image": {"positions": positions(1 + n)}} for n in (4, 9))
  adapted = adapt_params(old, new, (2, 2), (3, 3))["image"]["positions"]
  np.testing.assert_array_equal(adapted[0], old["image"]["positions"][0])
  np.testing.assert_allclose(
    adapted[1:], resample_positions(old["image"]["positions"][1:], (2, 2), (3, 3))
  )


def test_other_differences_are_listed():
  ours = model(width=4)
  ours["image"]["bias"] = np.zeros(2)
  trained = {**model(), "head": np.zeros(1)}
  with pytest.raises(
    UserError,
    match=r"(?s)3 arrays .*:.*image/kernel: saved \(5, 3\), expected"
    r" \(5, 4\).*image/bias: not saved, .*head: saved \(1,\), not expected.*"
    "config.json of that run",
  ):
    adapt_params(trained, ours, (2, 2), (2, 2))


def test_overlay_replaces_only_shared_leaves():
  adapted = overlay({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": {"e": 4}})
  assert adapted == {"a": {"b": 3, "c": 2}}


@pytest.mark.parametrize(
  "arguments, message",
  [
    (((2, 3), (4, 4)), "4 position embeddings do not form a grid of 2 x 3"),
    (((2, 2), (4, 4), "nearest"), "method 'nearest' is not"),
  ],
)
def test_invalid_arguments_are_reported(arguments, message):
  old, new, *method = arguments
  with pytest.raises(UserError, match=message):
    resample_positions(positions(4), old, new, **({"method": method[0]} if method else {}))
