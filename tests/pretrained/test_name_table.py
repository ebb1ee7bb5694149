"""Name tables and their views."""

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.pretrained import big_vision, hugging_face, name_table, open_clip_names
from clip_jax.pretrained.name_table import Name


def test_a_kernel_is_viewed_as_a_transposed_weight():
  kernel = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # [in, heads, D/h]
  weight = name_table.matrix(kernel)
  for i in range(2):
    for h in range(3):
      for d in range(4):
        assert weight[h * 4 + d, i] == kernel[i, h, d]
  out = name_table.matrix_of_heads(kernel)  # [heads, D/h, out]
  assert out.shape == (4, 6) and out[1, 5] == kernel[1, 2, 1]


def test_a_patch_embedding_kernel_is_viewed_as_a_convolution_weight():
  """Checked against an explicit sum over one patch."""
  rng = np.random.default_rng(0)
  kernel, image = rng.normal(size=(2 * 2 * 3, 5)), rng.normal(size=(2, 2, 3))
  weight = name_table.patch(kernel)  # [D, 3, p, p]
  by_convolution = sum(
    weight[:, c, y, x] * image[y, x, c] for c in range(3) for y in range(2) for x in range(2)
  )
  np.testing.assert_allclose(by_convolution, image.reshape(-1) @ kernel)


@pytest.mark.parametrize(
  "view, shape",
  [
    (name_table.matrix, (6, 3, 2, 4)),
    (name_table.matrix, (6, 5)),
    (name_table.matrix_of_heads, (2, 4, 6)),
    (name_table.convolution, (3, 3, 4, 5)),
    (name_table.patch, (12, 5)),
    (name_table.square_patch, (27, 5)),
    (name_table.of(1, 1, name_table.matrix), (6, 3, 2, 4)),
    (name_table.of(2, 0, name_table.vector), (3, 2, 4)),
    (name_table.vector, (3, 2, 4)),
  ],
)
def test_writing_to_a_view_writes_to_its_array(view, shape):
  stacked = np.zeros((2, *shape))
  view(stacked[1])[...] = 1
  assert stacked[0].sum() == 0 and stacked[1].sum() == view(stacked[1]).size


TABLE = [
  Name("w.{}", "blocks/kernel", name_table.matrix),
  Name("both", "a"),
  Name("both", "b"),
  Name("not here", "c"),
]


def tree():
  rng = np.random.default_rng(0)
  return {
    "blocks/kernel": rng.normal(size=(2, 3, 4)).astype(np.float32),
    "a": rng.normal(size=(2, 3)).astype(np.float32),
    "b": rng.normal(size=(1, 3)).astype(np.float32),
  }


def test_written_arrays_can_be_read():
  made = name_table.written(TABLE, tree())
  assert {name: x.shape for name, x in made.items()} == {
    "w.0": (4, 3),
    "w.1": (4, 3),
    "both": (3, 3),
  }
  empty = {name: np.zeros_like(x) for name, x in tree().items()}
  name_table.read(TABLE, empty, {**made, "x.ignored": np.ones(9)}, "there", ignored=("*.ignored",))
  for name, x in tree().items():
    np.testing.assert_array_equal(empty[name], x)


def test_an_array_without_a_name_is_an_error():
  with pytest.raises(UserError, match="no name for 1 arrays of the model: blocks/k"):
    name_table.written(TABLE[1:], tree())


@pytest.mark.parametrize(
  "table",
  [
    open_clip_names.VIT,
    open_clip_names.TRUNK,
    open_clip_names.text_table("", affine=False),
    open_clip_names.resnet_table((1, 2, 1, 1)),
    hugging_face.TABLES["clip"],
    hugging_face.TABLES["siglip"],
    big_vision.TABLE,
  ],
)
def test_no_table_names_an_array_twice(table):
  ours = [(row.theirs, row.ours) for row in table]
  assert len(set(ours)) == len(ours)
