"""Device time by instruction and by part, for programs with a known bottleneck."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from clip_jax.costs import profile_trace


def program(x, w):
  with jax.named_scope("image_tower"):
    z = jnp.tanh(x @ w) @ w
  with jax.named_scope("loss"):
    return jnp.square(z).sum()


def test_instructions_have_their_scopes():
  x = jnp.ones((64, 64))
  text = jax.jit(jax.grad(program, argnums=1)).lower(x, x).compile().as_text()
  found = profile_trace.scoped_instructions(text)
  products = [i for i in found.values() if i.opcode in ("dot", "custom-call", "fusion")]
  assert products and all(profile_trace.part_of(i.scopes) != "other" for i in products)
  assert any(i.scopes.startswith("jit(") and "jvp(image_tower)" in i.scopes for i in products)


def test_instructions_without_scopes_take_those_of_callees_or_operands():
  text = """
%held (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %r = f32[2]{0} add(%p, %p), metadata={op_name="jit(f)/optimizer/add"}
}

%never (p.1: (f32[2], s32[])) -> pred[] {
  %p.1 = (f32[2]{0}, s32[]) parameter(0)
  ROOT %no = pred[] constant(false)
}

ENTRY %main (a: f32[2]) -> (f32[2], s32[]) {
  %a = f32[2]{0} parameter(0)
  %one = f32[2]{0:T(128)} fusion(%a), kind=kLoop, calls=%held
  %two = f32[2]{0} custom-call(%a, %one), custom_call_target="x"
  ROOT %loop = (f32[2]{0}, /*index=1*/s32[]) while(%one), condition=%never, body=%held
}
"""
  found = profile_trace.scoped_instructions(text)
  assert found["one"] == ("fusion", "jit(f)/optimizer/add")
  assert found["two"] == ("custom-call", "jit(f)/optimizer/add")
  assert found["loop"].opcode == "while"


@pytest.mark.parametrize(
  "scopes, part",
  [
    ("jit(train_step)/transpose(jvp(image_tower))/while/body/dot_general", "image_tower"),
    ("jit(train_step)/jvp(loss)/image_tower/mul", "loss"),
    ("jit(train_step)/jvp()/augmentation/mul", "augmentation"),
    ("jit(train_step)/optimizer/add", "optimizer"),
    ("jit(train_step)/lossless/add", "other"),
    ("", "other"),
  ],
)
def test_part_must_match_a_whole_scope(scopes, part):
  assert profile_trace.part_of(scopes) == part


def test_trace_finds_the_expensive_part(tmp_path):
  def two(x):
    with jax.named_scope("image_tower"):
      y = x @ x @ x @ x  # Expensive,
    with jax.named_scope("text_tower"):
      return y.sum() + x[0].sum()  # and cheap.

  x = jnp.ones((256, 256)) / 256
  compiled = jax.jit(two).lower(x).compile()
  trace = profile_trace.record_trace(lambda: compiled(x), tmp_path)
  found = profile_trace.scoped_instructions(compiled.as_text())
  seconds = profile_trace.device_seconds(trace, found)
  shares = profile_trace.shares_by_part(seconds, found)
  assert sum(shares.values()) == pytest.approx(1)
  assert shares["image_tower"] > 0.5 > shares["text_tower"]
  assert (trace.parent / "perfetto_trace.json.gz").is_file()


def test_most_expensive_instructions_come_first():
  found = {
    "a": profile_trace.ScopedInstruction("dot", "jit(f)/x/" + "y" * 100),
    "b": profile_trace.ScopedInstruction("add", "jit(f)/z"),
  }
  top = profile_trace.most_expensive(Counter(a=1.0, b=3.0), found, most=2)
  assert top[0] == ("b", 0.75, "z")
  assert top[1][:2] == ("a", 0.25) and top[1][2].startswith("...") and len(top[1][2]) == 73
