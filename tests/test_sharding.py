"""Meshes, and where the arrays of a train state lie on them."""

from types import SimpleNamespace

from flax import nnx
import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from clip_jax import sharding, step as step_lib
from clip_jax.config import build
from clip_jax.errors import UserError
from clip_jax.model import split
from clip_jax.planning.collectives import collectives
from clip_jax.planning.hlo import Program
from tiny import learner, text_tower

shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32)


@pytest.mark.parametrize("sizes, expected", [
    ((-1, 1, 1), (8, 1, 1)), ((1, -1, 1), (1, 8, 1)), ((2, -1, 2), (2, 2, 2)),
    ((-1, 4, 2), (1, 4, 2)), ((2, 2, -1), (2, 2, 2)), ((8, 1, 1), (8, 1, 1)),
])
def test_one_size_of_a_mesh_may_be_left_to_the_devices(sizes, expected):
  mesh = sharding.make_mesh(*sizes)
  assert tuple(mesh.shape.values()) == expected
  assert sharding.batch_shards(mesh) == expected[0] * expected[1]


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 8), (16, 1, 1)])
def test_sizes_that_do_not_make_up_the_devices_are_an_error(sizes):
  with pytest.raises(UserError, match=f"data={sizes[0]} fsdp={sizes[1]} tensor=1 does not make up "
                                      "the 8 devices" if sizes[2] == 1 else "does not make up"):
    sharding.make_mesh(*sizes)


def test_each_slice_takes_a_part_of_the_data_axis():
  devices = np.array(jax.devices()).reshape(2, 4)
  mesh = sharding.make_mesh(4, 2, slices=2)
  for i in range(2):
    assert set(mesh.devices[2 * i:2 * i + 2].ravel()) == set(devices[i])


def test_slices_that_devices_know_of_are_found():
  """As libtpu describes two slices of four chips; the order of devices is not that of slices."""
  devices = [SimpleNamespace(id=i, slice_index=i % 2, process_index=i % 2, platform="tpu",
                             device_kind="TPU v5 lite", coords=(i // 2 % 2, i // 4, 0),
                             core_on_chip=0) for i in range(8)]
  placed = {}

  def mesh_of(devices, axes, axis_types):
    placed["devices"] = devices
    return SimpleNamespace(shape=dict(zip(axes, devices.shape)))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "Mesh", mesh_of)
    mesh = sharding.make_mesh(-1, 2, devices=devices)
  assert mesh.shape == {"data": 4, "fsdp": 2, "tensor": 1}
  slices = [[d.slice_index for d in row.ravel()] for row in placed["devices"]]
  assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize("sizes, slices", [((2, 4), 4), ((8, 1), 3), ((8, 1), 0)])
def test_slices_that_cut_more_than_the_data_axis_are_an_error(sizes, slices):
  with pytest.raises(UserError, match=f"data={sizes[0]} cannot be cut into slices={slices}"):
    sharding.make_mesh(*sizes, slices=slices)


def specs(tree, mesh, **options):
  """{name: how it is split}."""
  made = sharding.state_shardings(tree, mesh, **options)
  return {sharding.name(path): s.spec for path, s in jax.tree_util.tree_leaves_with_path(made)}


def test_heads_and_hidden_units_are_split_over_tensor_and_the_rest_by_fsdp():
  state = jax.eval_shape(lambda: step_lib.create(learner(), optax.adam(1e-3)))
  found = specs(state, sharding.make_mesh(2, 2, 2), smallest=64)
  for tree in ("params", "opt_state/0/mu", "opt_state/0/nu"):
    blocks = f"{tree}/model/image/stack/blocks"
    assert found[f"{blocks}/attention/qkv/kernel"] == P(None, "fsdp", None, "tensor", None)
    assert found[f"{blocks}/attention/qkv/bias"] == P(None, None, "tensor", "fsdp")
    assert found[f"{blocks}/attention/out/kernel"] == P(None, "tensor", None, "fsdp")
    assert found[f"{blocks}/mlp/up/kernel"] == P(None, "fsdp", "tensor")
    assert found[f"{blocks}/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert found[f"{tree}/model/text/embedding"] == P("fsdp", "tensor")
    assert found[f"{tree}/model/image/embedding/kernel"] == P("fsdp", None)
    assert found[f"{tree}/objective/log_scale"] == P()


def test_what_cannot_be_split_is_a_copy():
  """Three heads over two devices; and an array that is too small for FSDP."""
  tree = {"attention": {"qkv": {"kernel": shape(32, 3, 3, 16)}},
          "mlp": {"up": {"kernel": shape(32, 64)}}, "odd": shape(33, 77), "small": shape(8, 8)}
  found = specs(tree, sharding.make_mesh(1, 4, 2), smallest=100)
  assert found["attention/qkv/kernel"] == P("fsdp", None, None, None)
  assert found["mlp/up/kernel"] == P("fsdp", "tensor")
  assert found["odd"] == found["small"] == P()


def test_a_tensor_axis_that_divides_nothing_is_an_error():
  tree = {"attention": {"qkv": {"kernel": shape(32, 3, 3, 16)}}, "other": shape(64, 64)}
  with pytest.raises(UserError, match="tensor=8 divides no number of heads.*they are 3. Set"):
    sharding.state_shardings(tree, sharding.make_mesh(1, 1, 8))


def test_the_explanation_says_how_an_array_is_split_and_what_a_device_holds_of_it():
  mesh = sharding.make_mesh(2, 2, 2)
  tree = {"mlp": {"up": {"kernel": np.ones((2, 32, 128), np.float32)}}, "scale": np.float32(1),
          "embedding": np.ones((64, 32), np.float16)}
  placed = jax.device_put(tree, sharding.state_shardings(tree, mesh, smallest=64))
  assert sharding.explained(placed) == [
      ("embedding", "float16[64, 32]", "64 / fsdp 2", 64 * 32 * 2 // 2),
      ("mlp/up/kernel", "float32[2, 32, 128]", "32 / fsdp 2, 128 / tensor 2", 2 * 32 * 128),
      ("scale", "float32[]", "a copy", 4)]
  for (*_, size), x in zip(sharding.explained(placed), jax.tree.leaves(placed)):
    assert size == x.addressable_shards[0].data.nbytes


def test_a_batch_that_does_not_split_evenly_is_an_error():
  with pytest.raises(UserError, match="batch_size 100 is not divisible by 8 devices; nearest that "
                                      "are: 96, 104"):
    sharding.check_divisible(100, devices=8)


def test_looking_up_tokens_moves_the_table_and_not_what_was_found():
  """A bag of words with a split table on eight devices: nothing as large as [B, L, D] travels."""
  B, L, D, vocabulary = 1024, 8, 32, 64
  tower = build(text_tower(depth=0, length=L, vocabulary=vocabulary, pool="mean"), rngs=nnx.Rngs(0))
  graphdef, params, stats = split(tower)
  mesh = sharding.make_mesh(1, 8)
  places = sharding.state_shardings(params, mesh, smallest=64)
  assert places["embedding"].spec == P("fsdp", None)
  loss = lambda params, tokens: (nnx.merge(graphdef, params, stats)(tokens) ** 2).sum()
  with jax.set_mesh(mesh):
    gradient = jax.jit(jax.grad(loss), in_shardings=(places, sharding.rows(mesh)),
                       out_shardings=places)
    text = gradient.lower(params, jax.ShapeDtypeStruct((B, L), np.int32)).compile().as_text()
  sizes = [one.bytes for one in collectives(Program(text), 8)]
  assert sizes and max(sizes) <= 4 * B * L < 4 * B * L * D  # Token numbers at most.
