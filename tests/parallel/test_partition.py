"""Meshes, and the sharding of the train state over them."""

from types import SimpleNamespace

from flax import nnx
import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from clip_jax.config import build
from clip_jax.costs.hlo import Program
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from clip_jax.parallel import mesh as mesh_lib, partition, placement
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.planning.collectives import collectives
from clip_jax.training import state as state_lib
from tiny import learner, text_tower

shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32)


@pytest.mark.parametrize(
  "sizes, expected",
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((1, -1, 1), (1, 8, 1)),
    ((2, -1, 2), (2, 2, 2)),
    ((-1, 4, 2), (1, 4, 2)),
    ((2, 2, -1), (2, 2, 2)),
    ((8, 1, 1), (8, 1, 1)),
  ],
)
def test_one_mesh_size_is_inferred_from_the_devices(sizes, expected):
  mesh = mesh_lib.make_mesh(*sizes)
  assert tuple(mesh.shape.values()) == expected
  assert mesh_lib.batch_shards(mesh) == expected[0] * expected[1]


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (16, 1, 1)])
def test_mesh_sizes_that_do_not_match_the_devices_are_an_error(sizes):
  given = f"data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]}"
  with pytest.raises(UserError, match=f"{given} does not match the number of devices, 8"):
    mesh_lib.make_mesh(*sizes)


def test_each_slice_takes_a_part_of_the_data_axis():
  devices = np.array(jax.devices()).reshape(2, 4)
  mesh = mesh_lib.make_mesh(4, 2, slices=2)
  for i in range(2):
    assert set(mesh.devices[2 * i : 2 * i + 2].ravel()) == set(devices[i])


def test_slices_are_detected_from_the_devices():
  """Like two slices of four chips in libtpu, with devices that are not ordered by slice."""
  devices = [
    SimpleNamespace(
      id=i,
      slice_index=i % 2,
      process_index=i % 2,
      platform="tpu",
      device_kind="TPU v5 lite",
      coords=(i // 2 % 2, i // 4, 0),
      core_on_chip=0,
    )
    for i in range(8)
  ]
  placed = {}

  def mesh_of(devices, axes, axis_types):
    placed["devices"] = devices
    return SimpleNamespace(shape=dict(zip(axes, devices.shape)))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh_lib, "Mesh", mesh_of)
    mesh = mesh_lib.make_mesh(-1, 2, devices=devices)
  assert mesh.shape == {"data": 4, "fsdp": 2, "tensor": 1}
  slices = [[d.slice_index for d in row.ravel()] for row in placed["devices"]]
  assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize("sizes, slices", [((2, 4), 4), ((8, 1), 3)])
def test_slices_that_do_not_divide_the_data_axis_are_an_error(sizes, slices):
  with pytest.raises(UserError, match=f"data={sizes[0]} cannot be divided into slices={slices}"):
    mesh_lib.make_mesh(*sizes, slices=slices)


def specs(tree, mesh, **options):
  """Returns {name: PartitionSpec}."""
  made = partition.state_shardings(tree, mesh, **options)
  return {name: s.spec for name, s in leaves_by_name(made).items()}


def test_state_is_sharded_over_tensor_by_name_and_over_fsdp_by_shape():
  state = jax.eval_shape(lambda: state_lib.init_train_state(learner(), optax.adam(1e-3)))
  found = specs(state, mesh_lib.make_mesh(2, 2, 2), min_size=64)
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


def test_indivisible_and_small_arrays_are_replicated():
  """Three heads on two devices, and an array below the minimum size for FSDP."""
  tree = {
    "attention": {"qkv": {"kernel": shape(32, 3, 3, 16)}},
    "mlp": {"up": {"kernel": shape(32, 64)}},
    "odd": shape(33, 77),
    "small": shape(8, 8),
  }
  found = specs(tree, mesh_lib.make_mesh(1, 4, 2), min_size=100)
  assert found["attention/qkv/kernel"] == P("fsdp", None, None, None)
  assert found["mlp/up/kernel"] == P("fsdp", "tensor")
  assert found["odd"] == found["small"] == P()


def test_tensor_axis_that_divides_nothing_is_an_error():
  tree = {"attention": {"qkv": {"kernel": shape(32, 3, 3, 16)}}, "other": shape(64, 64)}
  with pytest.raises(UserError, match="tensor=8 divides no axis.*sizes are 3. Set"):
    partition.state_shardings(tree, mesh_lib.make_mesh(1, 1, 8))


def test_description_lists_shardings_and_bytes_per_device():
  mesh = mesh_lib.make_mesh(2, 2, 2)
  tree = {
    "mlp": {"up": {"kernel": np.ones((2, 32, 128), np.float32)}},
    "scale": np.float32(1),
    "embedding": np.ones((64, 32), np.float16),
  }
  placed = jax.device_put(tree, partition.state_shardings(tree, mesh, min_size=64))
  assert partition.describe_shardings(placed) == [
    ("embedding", "float16[64, 32]", "64 / fsdp 2", 64 * 32 * 2 // 2),
    ("mlp/up/kernel", "float32[2, 32, 128]", "32 / fsdp 2, 128 / tensor 2", 2 * 32 * 128),
    ("scale", "float32[]", "replicated", 4),
  ]
  for (*_, size), x in zip(partition.describe_shardings(placed), jax.tree.leaves(placed)):
    assert size == x.addressable_shards[0].data.nbytes


def test_indivisible_batch_size_is_an_error():
  with pytest.raises(
    UserError, match="batch_size 100 is not divisible by 8 devices; nearest that are: 96, 104"
  ):
    mesh_lib.check_divisible(100, devices=8)


def test_token_lookup_gathers_the_table_and_not_the_embeddings():
  """A bag of words on eight devices with a sharded table communicates no array like [B, L, D]."""
  B, L, D, vocabulary = 1024, 8, 32, 64
  tower = build(
    text_tower(depth=0, context_length=L, vocab_size=vocabulary, pool="mean"), rngs=nnx.Rngs(0)
  )
  graphdef, params, stats = split_state(tower)
  mesh = mesh_lib.make_mesh(1, 8)
  places = partition.state_shardings(params, mesh, min_size=64)
  assert places["embedding"].spec == P("fsdp", None)
  loss = lambda params, tokens: (nnx.merge(graphdef, params, stats)(tokens) ** 2).sum()
  with jax.set_mesh(mesh):
    gradient = jax.jit(
      jax.grad(loss), in_shardings=(places, placement.batch_sharding(mesh)), out_shardings=places
    )
    text = gradient.lower(params, jax.ShapeDtypeStruct((B, L), np.int32)).compile().as_text()
  sizes = [one.bytes for one in collectives(Program(text), 8)]
  assert sizes and max(sizes) <= 4 * B * L < 4 * B * L * D  # At most the token ids.
