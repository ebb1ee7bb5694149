"""Parsing of compiled programs: recorded ones for TPU and GPU, and small handwritten ones.

`recorded.hlo` is the output of libtpu 0.0.42, without annotations, for v5e:2x2 and the gradient of

  lax.scan(lambda x, w: (rows(jnp.tanh(rows(x) @ w)), None), rows(x), w)

where w, bfloat16 [3, 512, 512], is sharded over fsdp (2) along its second axis, and the 4,096 rows
of x, bfloat16 [4096, 512], over data (2) and fsdp. `recorded_gpu.hlo` is the output of the CUDA
plugin of JAX 0.10.2 for the same program on four H100s.
"""

import dataclasses
from pathlib import Path

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.costs.hlo import Program, core_cycles, main_memory_traffic

RECORDED_FILES = {
  path.name: path for path in (Path(__file__).parents[1] / "planning").glob("*.hlo")
}
RECORDED = RECORDED_FILES["recorded.hlo"].read_text()


def test_loop_body_runs_once_per_iteration():
  program = Program(RECORDED)
  times = {name: n for name, n in program.times.items() if "region" in name and "sunk" in name}
  assert set(times.values()) == {3} and len(times) == 2  # Forward and backward.
  assert program.times[program.entry] == 1


def test_memory_traffic_counts_each_block_once_per_pass():
  """Weights are read twice, one block per iteration; x is read; gradients are written."""
  weights, x = 3 * 256 * 512 * 2, 1024 * 512 * 2
  traffic = main_memory_traffic(Program(RECORDED))
  assert traffic == pytest.approx(2 * weights + x + weights, rel=1e-3)


def program(body, shapes="f32[8,16]", more=""):
  """A module whose entry has a few lines."""
  return Program(f"HloModule m\n\n{more}\nENTRY %main (p: {shapes}) -> {shapes} {{\n{body}\n}}\n")


def test_arrays_in_on_chip_memory_are_not_traffic():
  text = """  %p = f32[8,16]{1,0} parameter(0)
  %a = f32[8,16]{1,0:T(8,128)S(1)} add(%p, %p)
  %b = f32[8,16]{1,0:T(8,128)S(1)} multiply(%a, %a)
  ROOT %c = bf16[8,16]{1,0:T(8,128)(2,1)} convert(%b)"""
  assert main_memory_traffic(program(text)) == 2 * 512 + 256


def test_in_place_update_moves_only_the_update():
  more = """%fused (q: f32[100,16], r: f32[1,16], i: s32[]) -> f32[100,16] {
  %q = f32[100,16]{1,0} parameter(0)
  %r = f32[1,16]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %u = f32[100,16]{1,0} dynamic-update-slice(%q, %r, %i, %z)
}
"""
  text = """  %p = f32[100,16]{1,0} parameter(0)
  %r = f32[1,16]{1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %i = s32[]{:S(6)} constant(3)
  %f = f32[100,16]{1,0} fusion(%p, %r, %i), kind=kLoop, calls=%fused
  ROOT %s = f32[1,16]{1,0:S(1)} dynamic-slice(%f, %i, %i), dynamic_slice_sizes={1,16}"""
  assert main_memory_traffic(program(text, "f32[100,16]", more)) == 64 + 64


def test_asynchronous_copies_and_slices_count_once():
  text = """  %p = f32[8,16]{1,0} parameter(0)
  %c = (f32[8,16]{1,0:S(1)}, f32[8,16]{1,0}, u32[]{:S(2)}) copy-start(%p)
  %d = f32[8,16]{1,0:S(1)} copy-done(%c)
  %s = (f32[8,16]{1,0}, f32[2,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:2], [0:16]}
  ROOT %t = f32[2,16]{1,0:S(1)} slice-done(%s)"""
  assert main_memory_traffic(program(text)) == 512 + 128


def loop(step, limit):
  more = f"""%body (q: (u32[], f32[8,16])) -> (u32[], f32[8,16]) {{
  %q = (u32[], f32[8,16]{{1,0}}) parameter(0)
  %i = u32[] get-tuple-element(%q), index=0
  %x = f32[8,16]{{1,0}} get-tuple-element(%q), index=1
  %k = u32[] constant({step})
  %j = u32[] add(%i, %k)
  ROOT %t = (u32[], f32[8,16]{{1,0}}) tuple(%j, %x)
}}

%condition (q.1: (u32[], f32[8,16])) -> pred[] {{
  %q.1 = (u32[], f32[8,16]{{1,0}}) parameter(0)
  %i.1 = u32[] get-tuple-element(%q.1), index=0
  %n = u32[] constant({limit})
  ROOT %l = pred[] compare(%i.1, %n), direction=LT
}}
"""
  text = """  %p = (u32[], f32[8,16]{1,0}) parameter(0)
  ROOT %w = (u32[], f32[8,16]{1,0}) while(%p), condition=%condition, body=%body"""
  return program(text, more=more).times["body"]


def test_loop_counter_may_increase_by_more_than_one():
  """The compiler's own loops over the devices of a ring do so, by two per iteration."""
  assert [loop(1, 12), loop(2, 8), loop(2, 7)] == [12, 4, 4]


def test_programs_for_cpus_are_parsed():
  deep = lambda x, w: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
  text = (
    jax.jit(deep)
    .lower(np.ones((4, 8), np.float32), np.ones((5, 8, 8), np.float32))
    .compile()
    .as_text()
  )
  parsed = Program(text)
  assert 5 in {parsed.times[name] for name in parsed.computations}


@pytest.mark.parametrize("file", ["recorded.hlo", "recorded_gpu.hlo"])
def test_names_may_be_written_without_percent_signs(file):
  text = RECORDED_FILES[file].read_text()
  with_signs, without = Program(text), Program(text.replace("%", ""))
  assert with_signs.times == without.times
  without_signs = lambda i: dataclasses.replace(i, attributes=i.attributes.replace("%", ""))
  for name, computation in with_signs.computations.items():
    assert list(map(without_signs, computation.values())) == list(
      without.computations[name].values()
    )
  assert main_memory_traffic(without) == main_memory_traffic(with_signs)


@pytest.mark.parametrize(
  "operands, names",
  [
    ("%a, %b.1", ["a", "b.1"]),
    ("a-start, b_2", ["a-start", "b_2"]),
    ("f32[8,16]{1,0:T(8,128)S(1)} %a, (f32[2]{0}, /*index=1*/s32[]) b", ["a", "b"]),
    ("%a, /*index=5*/%b, /*index=6*/c", ["a", "b", "c"]),
    ("", []),
  ],
)
def test_operands_may_have_types_and_comments(operands, names):
  parsed = program(f"  ROOT %r = f32[8,16]{{1,0}} custom-call({operands}), a={{1,2}}")
  assert list(parsed.computations["main"]["r"].operands) == names


def test_literals_are_not_operands():
  parsed = program("  %p = f32[2]{0} parameter(1)\n  ROOT %k = f32[2]{0} constant({1, inf})")
  p, k = parsed.computations["main"].values()
  assert (p.literal, k.literal) == ("1", "{1, inf}") and p.operands == k.operands == ()


def test_origin_is_the_jax_operation():
  parsed = program('  ROOT %r = f32[2]{0} constant(1), metadata={op_name="jit(f)/loss/mul" x="/"}')
  assert parsed.computations["main"]["r"].origin == "jit(f)/loss/mul"


def test_cublas_workspace_is_not_traffic():
  """It is one of several results; an array of bytes that is the only result is not a workspace."""
  text = """  %p = f32[8,16]{1,0} parameter(0)
  %g = (f32[8,8]{1,0}, s8[4194304]{0}) custom-call(%p, %p), custom_call_target="__cublas$gemm"
  %y = f32[8,8]{1,0} get-tuple-element(%g), index=0
  %c = s8[128]{0} custom-call(%y), custom_call_target="__cublas$lt$matmul"
  ROOT %o = (f32[8,8]{1,0}, s8[32]{0}) custom-call(%c), custom_call_target="another" """
  product, bytes_, another = 512 + 512 + 256, 256 + 128, 128 + 256 + 32
  assert main_memory_traffic(program(text)) == product + bytes_ + another


def test_operands_among_the_results_of_a_collective_are_not_written():
  """An all-gather-start has its operands among its results; an all-reduce-start has not."""
  text = """  %p = f32[8,16]{1,0} parameter(0)
  %a = ((f32[8,16], f32[8,16]), (f32[16,16], f32[16,16])) all-gather-start(%p, %p)
  %b = (f32[16,16], f32[16,16]) all-gather-done(%a)
  %s = ((f32[8,16]{1,0}), f32[4,16]{1,0}) reduce-scatter-start(%p)
  %t = f32[4,16]{1,0} reduce-scatter-done(%s)
  %r = f32[8,16]{1,0} all-reduce-start(%p)
  ROOT %d = f32[8,16]{1,0} all-reduce-done(%r)"""
  assert main_memory_traffic(program(text)) == 2 * (512 + 1024) + (512 + 256) + 2 * 512


ASYNC = """%inner (q: f32[8,16]) -> f32[8,16] {
  %q = f32[8,16]{1,0} parameter(0)
  ROOT %e = f32[8,16]{1,0} all-to-all(%q), channel_id=3, replica_groups={{0,1}}
}
"""


def test_asynchronous_computation_runs_once():
  text = """  %p = f32[8,16]{1,0} parameter(0)
  %s = ((f32[8,16]{1,0}), f32[8,16]{1,0}) async-start(%p), calls=%inner
  %u = ((f32[8,16]{1,0}), f32[8,16]{1,0}) async-update(%s), calls=%inner
  ROOT %d = f32[8,16]{1,0} async-done(%u), calls=%inner"""
  assert program(text, more=ASYNC).times["inner"] == 1


def cycles(n):
  return f'backend_config={{"window_config":{{"estimated_cycles":"{n}"}}}}'


def test_cycles_are_summed_over_fusions_and_iterations():
  """A fusion counts as a whole, a loop body in every iteration; copy-done has no estimate."""
  more = f"""%fused (f: f32[8,16]) -> f32[8,16] {{
  %f = f32[8,16]{{1,0}} parameter(0)
  ROOT %n = f32[8,16]{{1,0}} negate(%f), {cycles(70000)}
}}

%body (q: (u32[], f32[8,16])) -> (u32[], f32[8,16]) {{
  %q = (u32[], f32[8,16]{{1,0}}) parameter(0)
  %i = u32[] get-tuple-element(%q), index=0
  %x = f32[8,16]{{1,0}} get-tuple-element(%q), index=1
  %y = f32[8,16]{{1,0}} fusion(%x), kind=kLoop, calls=%fused, {cycles(100)}
  ROOT %t = (u32[], f32[8,16]{{1,0}}) tuple(%i, %y)
}}

%condition (q.1: (u32[], f32[8,16])) -> pred[] {{
  %q.1 = (u32[], f32[8,16]{{1,0}}) parameter(0)
  ROOT %l = pred[] constant(true)
}}
"""
  text = f"""  %p = f32[8,16]{{1,0}} parameter(0)
  %z = u32[] constant(0)
  %s = (f32[8,16]{{1,0}}, f32[8,16]{{1,0:S(1)}}, u32[]{{:S(2)}}) copy-start(%p)
  %e = f32[8,16]{{1,0}} fusion(%p), kind=kLoop, calls=%fused, {cycles(7)}
  %d = f32[8,16]{{1,0:S(1)}} copy-done(%s)
  %t = (u32[], f32[8,16]{{1,0}}) tuple(%z, %d)
  %w = (u32[], f32[8,16]{{1,0}}) while(%t), condition=%condition, body=%body, \
backend_config={{"known_trip_count":{{"n":"12"}}}}
  ROOT %o = f32[8,16]{{1,0}} get-tuple-element(%w), index=1"""
  assert core_cycles(program(text, more=more)) == 12 * 100 + 7


def test_program_without_cycles_has_no_estimate():
  assert core_cycles(Program(RECORDED)) is None
