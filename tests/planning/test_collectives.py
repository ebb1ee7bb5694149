"""Collectives of a recorded program, and of programs for eight CPUs with known collectives."""

from pathlib import Path

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.costs.hlo import Program
from clip_jax.planning.collectives import Collective, collectives, totals_by_kind

RECORDED = (Path(__file__).parent / "recorded.hlo").read_text()  # See test_hlo.py.
RECORDED_GPU = (Path(__file__).parent / "recorded_gpu.hlo").read_text()
BLOCK = 512 * 512 * 2  # Bytes of the weights of one layer.


@pytest.mark.parametrize("text", [RECORDED, RECORDED_GPU], ids=["TPU", "GPU"])
def test_recorded_step_gathers_weights_twice_and_scatters_their_gradient(text):
  """For three layers, over fsdp; the rest of each gradient is all-reduced over data."""
  found = collectives(Program(text), 4)
  assert sorted((c.kind, c.bytes, c.group, c.times) for c in found) == [
    ("all-gather", BLOCK, (0, 1), 3),
    ("all-gather", BLOCK, (0, 1), 3),
    ("all-reduce", BLOCK / 2, (0, 2), 3),
    ("reduce-scatter", BLOCK, (0, 1), 3),
  ]
  assert totals_by_kind(found) == {
    "all-gather": {"count": 6, "bytes": 6 * BLOCK / 2},
    "all-reduce": {"count": 3, "bytes": 3 * BLOCK / 2},
    "reduce-scatter": {"count": 3, "bytes": 3 * BLOCK / 2},
  }


def test_collectives_name_their_origin():
  found = collectives(Program(RECORDED), 4)
  assert all("dot_general" in c.origin for c in found if c.kind != "reduce-scatter")


# In the format of JAX's CUDA plugin: asynchronous, several in one, with operands in the results.
GPU = {
  "all-gather": (
    "((f32[8]{0}, bf16[8,4]{1,0}), (f32[64]{0}, bf16[64,4]{1,0}))",
    "%p, %q",
    8 * (32 + 64),
  ),
  "reduce-scatter": (
    "((f32[8]{0}, bf16[8,4]{1,0}), (f32[1]{0}, bf16[1,4]{1,0}))",
    "%p, %q",
    32 + 64,
  ),
  "all-reduce": ("(f32[8]{0}, bf16[8,4]{1,0})", "%p, %q", 32 + 64),
  "collective-permute": ("(f32[8]{0}, f32[8]{0}, u32[], u32[])", "%p", 32),
}


@pytest.mark.parametrize("kind", GPU)
def test_asynchronous_collectives_count_once_and_by_their_operands(kind):
  results, operands, size = GPU[kind]
  groups = (
    "source_target_pairs={{0,1},{1,0}}"
    if kind == "collective-permute"
    else "replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, use_global_device_ids=true"
  )
  config = 'backend_config={"collective_backend_config":{"is_sync":true}}'
  (one,) = collectives(
    Program(f"""ENTRY %main (p: f32[8], q: bf16[8,4]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  %q = bf16[8,4]{{1,0}} parameter(1)
  %s = {results} {kind}-start({operands}), channel_id=7, {groups}, {config}
  ROOT %d = f32[8]{{0}} {kind}-done(%s), {config}
}}
"""),
    8,
  )
  assert (one.kind, one.bytes, one.times) == (kind, size, 1)
  assert one.group == ((0, 1) if kind == "collective-permute" else tuple(range(8)))


def test_collective_in_an_asynchronous_computation_counts_once():
  (one,) = collectives(
    Program("""%inner (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  ROOT %e = f32[8]{0} all-to-all(%q), replica_groups={{0,1}}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %s = ((f32[8]{0}), f32[8]{0}) async-start(%p), calls=%inner
  ROOT %d = f32[8]{0} async-done(%s), calls=%inner
}
"""),
    2,
  )
  assert (one.kind, one.bytes, one.times) == ("all-to-all", 32, 1)


KNOWN = {  # Each of eight devices has float32 [8, 4], 128 bytes.
  "all-reduce": (lambda x: lax.psum(x, "i"), 128, 8),
  "all-gather": (lambda x: lax.all_gather(x, "i", tiled=True), 8 * 128, 8),
  "reduce-scatter": (lambda x: lax.psum_scatter(x, "i", tiled=True), 128, 8),
  "all-to-all": (lambda x: lax.all_to_all(x, "i", 0, 0, tiled=True), 128, 8),
  "collective-permute": (
    lambda x: lax.ppermute(x, "i", [(i, (i + 1) % 8) for i in range(8)]),
    128,
    2,
  ),
}


def compiled(f, sizes=(8,), axes=("i",), spec=None):
  spec = jax.P("i") if spec is None else spec
  mesh = jax.make_mesh(sizes, axes, axis_types=(jax.sharding.AxisType.Auto,) * len(axes))
  f = jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  text = jax.jit(f).lower(jax.ShapeDtypeStruct((64, 4), np.float32)).compile().as_text()
  return collectives(Program(text), 8)


@pytest.mark.parametrize("kind", KNOWN)
def test_known_collective_is_found_with_its_size_and_group(kind):
  f, size, group = KNOWN[kind]
  (one,) = compiled(f)
  assert (one.kind, one.bytes, len(one.group), one.times) == (kind, size, group, 1)


def test_collective_in_a_loop_runs_in_every_iteration():
  (one,) = compiled(
    lambda x: lax.scan(lambda x, _: (jnp.sin(lax.psum(x, "i")), None), x, None, 5)[0]
  )
  assert (one.kind, one.times) == ("all-reduce", 5)
  assert one.wire_bytes == pytest.approx(5 * 2 * 7 / 8 * 128)


@pytest.mark.parametrize(
  "axis, group", [("i", (0, 4)), ("j", (0, 1, 2, 3)), (("i", "j"), range(8))]
)
def test_groups_follow_the_axes_of_the_mesh(axis, group):
  (one,) = compiled(lambda x: lax.psum(x, axis), (2, 4), ("i", "j"), jax.P(("i", "j")))
  assert sorted(one.group) == list(group)


def groups(text, kind="all-reduce", devices=16):
  line = (
    f"  %p = f32[8]{{0}} parameter(0)\n  ROOT %r = f32[8]{{0}} {kind}(%p), channel_id=1, {text}"
  )
  return collectives(Program(f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}\n}}\n"), devices)


@pytest.mark.parametrize(
  "text, group",
  [
    ("replica_groups={{0,2},{1,3}}, dimensions={0}", (0, 2)),
    ("replica_groups={}, dimensions={0}", tuple(range(16))),
    ("replica_groups=[4,4]<=[16], dimensions={0}", (0, 1, 2, 3)),
    ("replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}", (0, 4, 8, 12)),
    ("replica_groups=mesh['a'=16,'b'=1] {'a'}, dimensions={0}", tuple(range(16))),
    ("replica_groups=mesh['a'=2,'b'=8] {'a'}, dimensions={0}", (0, 8)),
    ("replica_groups=mesh['a'=2,'b'=8] {'a','b'}, dimensions={0}", tuple(range(16))),
    ("replica_groups=mesh['a'=8,'b'=2], device_ids=([2,8]T(1,0)) {'b'}, dimensions={0}", (0, 8)),
    (
      "replica_groups=mesh['a'=8,'b'=2], device_ids=([2,8]T(1,0)) {'a'}, dimensions={0}",
      tuple(range(8)),
    ),
    ("replica_groups=mesh['a'=16] {'a':(2)4}, dimensions={0}", (0, 2, 4, 6)),
  ],
)
def test_every_format_of_groups_is_parsed(text, group):
  (one,) = groups(text)
  assert one.group == group


def test_collective_in_a_group_of_one_is_left_out():
  assert groups("replica_groups={{0},{1}}, dimensions={0}") == []


@pytest.mark.parametrize(
  "kind, share",
  [
    ("all-gather", 3 / 4),
    ("reduce-scatter", 3 / 4),
    ("all-reduce", 3 / 2),
    ("all-to-all", 3 / 4),
    ("collective-permute", 1),
  ],
)
def test_ring_algorithms_move_these_shares_to_each_device(kind, share):
  assert Collective(kind, 100.0, (0, 1, 2, 3), 2, "", "").wire_bytes == 200 * share
