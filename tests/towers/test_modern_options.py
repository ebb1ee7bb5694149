"""Options of transformers that are off by default: each matches its formula in NumPy."""

import math

from flax import nnx
import jax
import numpy as np
import pytest

from clip_jax.config import build
from clip_jax.costs.flops import count_multiply_adds
from clip_jax.errors import UserError
from clip_jax.nn import patches, rotary, transformer
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.pretrained import big_vision, hugging_face, open_clip
from clip_jax.pretrained.model_bundle import ModelBundle
from tiny import LENGTH, SIZE, image_tower, largest_difference, model_call, text_tower
from tiny_towers import randomised

MODERN = dict(
  registers=3,
  layer_scale=0.1,
  qk_norm=True,
  norm="rms",
  gated_mlp=True,
  activation="silu",
  positions="none",
)


def pixels(B=3):
  return np.random.default_rng(0).normal(size=(B, SIZE, SIZE, 3)).astype(np.float32)


def numpy_norm(kind, params, x, eps):
  x = x - x.mean(-1, keepdims=True) if kind == "layer" else x
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
  return x * params["scale"] + params.get("bias", 0)


def numpy_rotated(x, angles, half):
  """[N, heads, d] as complex numbers, multiplied by exp(i angle)."""
  d = x.shape[-1]
  at = (np.arange(d // 2), np.arange(d // 2) + d // 2) if half else (np.arange(0, d, 2),) * 2
  first, second = (at[0], at[1]) if half else (at[0], at[0] + 1)
  z = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angles)[:, None]
  out = np.empty_like(x)
  out[..., first], out[..., second] = z.real, z.imag
  return out


def numpy_block(p, x, *, norm, norm_order, qk_norm, sub_norm, layer_scale, gated_mlp, angles, half):
  """One block for one sequence, [N, D], with GELU in its exact form."""
  normal = lambda name, x: numpy_norm(norm, p[name], x, 1e-6)
  gelu = lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

  def attend(x):
    q, k, v = (
      np.einsum("nd,dkhe->knhe", x, p["attention"]["qkv"]["kernel"])
      + (p["attention"]["qkv"]["bias"][:, None])
    )
    if qk_norm:
      q = numpy_norm(norm, p["attention"]["query_norm"], q, 1e-6)
      k = numpy_norm(norm, p["attention"]["key_norm"], k, 1e-6)
    q, k = numpy_rotated(q, angles, half), numpy_rotated(k, angles, half)
    weights = np.exp(np.einsum("nhe,mhe->hnm", q, k) / math.sqrt(q.shape[-1]))
    y = np.einsum("hnm,mhe->nhe", weights / weights.sum(-1, keepdims=True), v)
    if sub_norm:
      flat = numpy_norm(norm, p["attention"]["out_norm"], y.reshape(len(y), -1), 1e-6)
      y = flat.reshape(y.shape)
    out = p["attention"]["out"]
    return np.einsum("nhe,hed->nd", y, out["kernel"]) + out["bias"]

  def mlp(x):
    linear = lambda name, x: x @ p["mlp"][name]["kernel"] + p["mlp"][name]["bias"]
    y = gelu(linear("gate", x)) * linear("up", x) if gated_mlp else gelu(linear("up", x))
    return linear("down", numpy_norm(norm, p["mlp"]["norm"], y, 1e-6) if sub_norm else y)

  for branch, name in ((attend, "norm_attention"), (mlp, "norm_mlp")):
    y = branch(normal(name, x) if norm_order == "pre" else x)
    y = normal(name, y) if norm_order == "branch" else y
    if layer_scale is not None:
      y = y * p[name.replace("norm", "scale")]
    x = normal(name, x + y) if norm_order == "post" else x + y
  return x


@pytest.mark.parametrize(
  "kind, form",
  [
    (
      "axial",
      dict(norm="rms", norm_order="pre", qk_norm=True, sub_norm=False, layer_scale=0.1),
    ),
    ("centered", dict(norm="layer", norm_order="post", qk_norm=False, sub_norm=True)),
    ("axial_xy", dict(norm="layer", norm_order="branch", qk_norm=True, sub_norm=True)),
  ],
)
@pytest.mark.parametrize("gated_mlp", [False, True])
def test_a_block_matches_numpy(kind, form, gated_mlp):
  form = {"layer_scale": None, "gated_mlp": gated_mlp, **form}
  make = lambda rngs: transformer.Block(16, 2, 24, activation="gelu", **form, rngs=rngs)
  block = randomised(make)
  turned = rotary.grid_rotation(kind, (2, 3), 8, prefix=1)
  x = np.random.default_rng(0).normal(size=(2, 7, 16)).astype(np.float32)
  p = jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(block)))
  angles = np.arctan2(turned.sin, turned.cos)
  expected = [numpy_block(p, one, **form, angles=angles, half=turned.half) for one in x]
  np.testing.assert_allclose(block(x, None, turned), expected, rtol=2e-4, atol=2e-4)


def test_angles_are_those_of_the_papers():
  at = rotary.grid_rotation("axial", (3, 4), 16, prefix=2)
  turned = np.arctan2(at.sin, at.cos)
  assert turned.shape == (14, 8) and (turned[:2] == 0).all()
  bands = [1, 0.1, 0.01, 0.001]  # 10,000^(-i/4)
  np.testing.assert_allclose(
    turned[2 + 4 * 2 + 3], [2 * b for b in bands] + [3 * b for b in bands], rtol=1e-5
  )
  at = rotary.grid_rotation("axial_xy", (3, 4), 16, reference=(6, 4))
  turned = np.arctan2(at.sin, at.cos)
  row, column = 2, 4  # Counted from 1: the first row is scaled to 1 / 3 * 6.
  np.testing.assert_allclose(
    turned[3],
    [math.remainder(column * b, 2 * math.pi) for b in bands] + [row * b for b in bands],
    rtol=1e-5,
  )
  at = rotary.grid_rotation("centered", (1, 2), 8)
  # The columns have the coordinates -0.5 and 0.5; wavelengths are 1 and 10.
  np.testing.assert_allclose(at.cos[1], [1, 1, -1, math.cos(math.pi / 10)], atol=1e-6)
  at = rotary.text_rotation(5, 4, prefix=1)
  np.testing.assert_allclose(np.arctan2(at.sin, at.cos)[4], [3, 0.03], rtol=1e-5)
  with pytest.raises(UserError, match="multiple of 4, not 6. Choose num_heads"):
    build(image_tower(rotary="axial", width=12, num_heads=2), rngs=nnx.Rngs(0))


def test_rotation_makes_attention_depend_on_relative_positions_only():
  """Without other positions, shifting all patches by a row changes no logits between them."""
  at = rotary.grid_rotation("axial", (4, 4), 16)
  q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 2, 16)).astype(np.float32)
  turn = lambda x, i: rotary.rotate(x, rotary.Rotation(at.cos[i : i + 1], at.sin[i : i + 1], False))
  dot = lambda i, j: np.einsum("bnhd,bnhd->bh", turn(q, i), turn(k, j))
  np.testing.assert_allclose(dot(1, 6), dot(5, 10), rtol=1e-4)
  assert largest_difference(dot(1, 6), dot(1, 7)) > 1e-2


def test_registers_are_left_out_of_the_mean_and_never_dropped():
  tower = build(image_tower(**MODERN, rotary="centered", depth=0), rngs=nnx.Rngs(0))
  plain = build(image_tower(**{**MODERN, "registers": 0}, depth=0), rngs=nnx.Rngs(0))
  np.testing.assert_allclose(tower(pixels()), plain(pixels()), atol=1e-6)  # They only attend.
  tower = randomised(image_tower(**MODERN, rotary="centered"))
  z = tower(pixels())
  tower.registers[...] = -tower.registers[...]
  assert largest_difference(tower(pixels()), z) > 1e-3
  # If all patches are the same and nothing depends on their place, dropping some changes nothing.
  tower.rotary = "none"
  flat, keys = np.ones((3, SIZE, SIZE, 3), np.float32), jax.random.split(jax.random.key(0), 3)
  np.testing.assert_allclose(
    tower(flat, keep=0.5, key=keys)[0], tower(flat, keep=0.5, key=keys)[1], rtol=1e-4
  )


def test_dropped_patches_keep_the_rotation_of_their_place(monkeypatch):
  tower = randomised(image_tower(**MODERN, rotary="axial"))
  shuffled = np.array([[1, 3, 0, 2], [0, 1, 2, 3], [3, 2, 1, 0]])  # All are kept.
  monkeypatch.setattr(patches, "kept_patches", lambda N, keep, key: shuffled)
  z = tower(pixels(), keep=0.5, key=jax.random.split(jax.random.key(0), 3))
  np.testing.assert_allclose(z, tower(pixels()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_modern_text_towers_ignore_padding(causal):
  spec = text_tower(**MODERN, rotary=True, causal=causal, pool="eot" if causal else "mean")
  tower = randomised(spec)
  tokens = np.zeros((2, LENGTH), np.int32)
  tokens[:, :3] = (5, 6, 7), (7, 6, 5)
  z = tower(tokens)
  np.testing.assert_allclose(tower(tower.cut_padding(tokens)), z, atol=1e-5)
  tower.embedding[...] = tower.embedding[...] * np.where(np.arange(64) == 0, -1, 1)[:, None]
  np.testing.assert_allclose(tower(tokens), z, atol=1e-5)
  assert largest_difference(z[0], z[1]) > 1e-3, "the order of the words has no effect"


def test_padding_may_have_another_id():
  tokens = np.zeros((2, LENGTH), np.int32)
  tokens[:, :3] = (5, 6, 7), (7, 6, 5)
  plain, other = (randomised(text_tower(pool="mean", pad_id=i)) for i in (0, 9))
  np.testing.assert_allclose(plain(tokens), other(np.where(tokens == 0, 9, tokens)), atol=1e-5)


def test_options_are_off_by_default():
  names = [*leaves_by_name(nnx.to_pure_dict(nnx.state(build(image_tower(), rngs=nnx.Rngs(0)))))]
  block = ["attention/out/bias", "attention/out/kernel", "attention/qkv/bias"]
  block += ["attention/qkv/kernel", "mlp/down/bias", "mlp/down/kernel", "mlp/up/bias"]
  block += ["mlp/up/kernel", "norm_attention/bias", "norm_attention/scale", "norm_mlp/bias"]
  block += ["norm_mlp/scale"]
  rest = ["embedding/bias", "embedding/kernel", "norm/bias", "norm/scale", "positions"]
  assert sorted(names) == sorted([*rest, *(f"stack/blocks/{name}" for name in block)])


def test_flops_of_gated_mlps_and_registers_are_counted():
  def count(**changes):
    tower = build(image_tower(**changes), rngs=nnx.Rngs(0))
    return count_multiply_adds(tower, pixels(1))

  N, D, hidden, depth = 4, 32, 128, 2
  assert count(gated_mlp=True) - count() == depth * N * D * hidden
  added = lambda n: depth * (n * (4 * D * D + 2 * D * hidden) + 2 * D * ((N + n) ** 2 - N**2))
  assert count(registers=3) - count() == added(3)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(pool="tok", class_token=False), 'pool="tok" needs a class token'),
    (dict(pool="map", norm_after_pool=True), 'is for pool="gap", not'),
    (dict(pool_width=8), 'is for pool="attn", not'),
  ],
)
def test_contradictions_are_errors(changes, message):
  with pytest.raises(UserError, match=message):
    build(image_tower(**changes), rngs=nnx.Rngs(0))


OPENAI = dict(pool="tok", class_position=True, pre_norm=True, patch_bias=False, norm_eps=1e-5)


@pytest.mark.parametrize(
  "form, image, text",
  [
    (open_clip, OPENAI, dict(causal=True, pool="eot")),
    (hugging_face, OPENAI, dict(causal=True, pool="eot")),
    (big_vision, {}, dict(mask_padding=False)),
  ],
)
@pytest.mark.parametrize(
  "changes", [dict(layer_scale=0.1), dict(registers=1), dict(gated_mlp=True), dict(norm="rms")]
)
def test_other_formats_refuse_options_that_they_cannot_store(form, image, text, changes, tmp_path):
  modern = [
    dict(image=image_tower(**image, **changes), text=text_tower(**text)),
    dict(image=image_tower(**image), text=text_tower(**text, **changes)),
  ]
  for towers in modern:
    saved = ModelBundle(model_call(**towers), {}, {}, 1.0, 0.0, None, None)
    with pytest.raises(
      UserError, match=f"no equivalent of this model: .*'s {next(iter(changes))} is"
    ):
      form.write(saved, tmp_path / "out")
