"""timm's image towers in open_clip's checkpoints: what their names stand for, and their arrays.

Source: the models and names of timm 1.0. Sizes are read from the arrays; names only say what arrays
do not show.
"""

import re
from typing import Any

from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax.config import call
from clip_jax.errors import UserError
from clip_jax.pretrained.name_table import (
  Name,
  convolution,
  convolution_patch,
  layer_norm,
  linear,
  matrix,
  matrix_of_heads,
  of,
  patch,
  pointwise,
  prefixed,
  vector,
)
from clip_jax.towers.convnext import ConvNext
from clip_jax.towers.sizes import both_sides
from clip_jax.towers.vit import Vit
from clip_jax.towers.vitamin import Vitamin

TRUNK = "visual.trunk."
_HEADS = dict(tiny=3, small=6, medium=8, base=12, large=16, giant=16, gigantic=16, enormous=16)
_HEADS |= dict(large2=16, xlarge=16)
_SIZE = "(tiny|small|medium|base|large|giant|gigantic|enormous)"
# Pattern of a name -> the arguments of `Vit` that the arrays do not show.
_VITS: dict[str, dict[str, Any]] = {
  f"vit_{_SIZE}_patch(\\d+)_gap_(\\d+)": {"pool": "gap"},
  f"vit_{_SIZE}_patch(\\d+)_clip_(\\d+)": {"norm_eps": 1e-5},
  f"eva_{_SIZE}_patch(\\d+)_(\\d+)": {},
  f"eva02_{_SIZE}_patch(\\d+)_clip_(\\d+)": {},
  f"vit_pe_core_{_SIZE}_patch(\\d+)_(\\d+)": {
    "norm_eps": 1e-5,
    "rotary": "axial_xy",
    "pool_heads": 8,
  },
}
_CONVNEXT = re.compile(r"convnext_(tiny|small|base|large|xlarge|xxlarge)")
_VITAMIN = re.compile(r"vitamin_(small|base|large|large2|xlarge)_(\d+)")
_POOLS = {"avg": "gap", "token": "tok", "map": "map"}
KNOWN = (
  "timm models are read if they are SigLIP's, CLIP's, EVA's or Perception Encoder's ViTs, ConvNeXt "
  "or ViTamin"
)


def image_tower(name: str, side: Any, pool: str, arrays: dict, where: str) -> ConfigDict:
  """Returns the call of the tower that a timm model is.

  Args:
    name: timm's name.
    side: the image size of the config, a side or (height, width); None for that of the name.
    pool: timm_pool of the config; "" for the model's own.
    arrays: the arrays of the checkpoint, after `adapted`.
    where: for error messages.

  Raises:
    UserError: the model is of another kind, or lacks arrays.
  """
  if _CONVNEXT.fullmatch(name):
    return _convnext(name, side, pool, arrays, where)
  if found := _VITAMIN.fullmatch(name):
    return _vitamin(found, side, pool, arrays, where)
  for pattern, options in _VITS.items():
    if found := re.fullmatch(pattern, name):
      return _vit(found, side, pool, dict(options), arrays, where)
  raise UserError(f"{where}: cannot read the image tower {name:.100}. {KNOWN}.")


def _shape(arrays, where):
  """Returns a function from the name of an array to its shape."""

  def shape(name):
    if TRUNK + name not in arrays:
      raise UserError(f"{where} describes another model: the weights have no {TRUNK}{name}.")
    return arrays[TRUNK + name].shape

  return shape


def _count(arrays, pattern):
  """Returns how many numbers occur in the place of the group of a pattern."""
  return len({m[1] for name in arrays if (m := re.match(re.escape(TRUNK) + pattern, name))})


def _vit(found, side, pool, options, arrays, where):
  size, patch_size, named_side = found[1], int(found[2]), int(found[3])
  shape, has = _shape(arrays, where), lambda name: TRUNK + name in arrays
  side = side or named_side
  width, N = shape("pos_embed")[-1], shape("pos_embed")[-2]
  rows, columns = (n // patch_size for n in both_sides(side))
  gated = has("blocks.0.mlp.fc1_g.weight")
  if found[0].startswith("eva02") and gated:
    options |= dict(rotary="axial", rotary_grid=16, activation="silu")
  elif found[0].startswith("eva02"):
    options |= dict(norm_order="branch")
  if "rotary" in options:
    options.setdefault("rotary_grid", named_side // patch_size)
  own = options.pop("pool", None)
  pool = _POOLS.get(pool, pool) if pool else own
  if pool not in _POOLS.values():
    raise UserError(f"{where}: timm_pool {pool!r:.50} is not one that can be read for {found[0]}.")
  if pool == "map":
    options["pool_mlp_dim"] = shape("attn_pool.mlp.fc1.weight")[0]
  return call(
    Vit,
    patch=patch_size,
    image_size=side if isinstance(side, int) else tuple(side),
    pool=pool,
    class_token=has("cls_token"),
    class_position=has("cls_token") and rows * columns < N,
    registers=shape("reg_token")[1] if has("reg_token") else 0,
    pre_norm=has("norm_pre.weight"),
    norm_after_pool=has("fc_norm.weight"),
    patch_bias=has("patch_embed.proj.bias"),
    width=width,
    depth=_count(arrays, r"blocks\.(\d+)\."),
    num_heads=_HEADS[size],
    mlp_dim=shape(f"blocks.0.mlp.{'fc1_g' if gated else 'fc1'}.weight")[0],
    gated_mlp=gated,
    sub_norm=has("blocks.0.attn.norm.weight"),
    qk_norm=has("blocks.0.attn.q_norm.weight"),
    layer_scale=1.0 if has("blocks.0.ls1.gamma") or has("blocks.0.gamma_1") else None,
    dtype="float32",
    **{"activation": "gelu", **options},
  )


def _convnext(name, side, pool, arrays, where):
  if pool not in ("", "avg"):
    raise UserError(f"{where}: timm_pool {pool!r:.50} is not one that can be read for {name}.")
  shape = _shape(arrays, where)
  stages = [_count(arrays, rf"stages\.{i}\.blocks\.(\d+)\.") for i in range(4)]
  return call(
    ConvNext,
    stages=tuple(stages),
    width=shape("stem.0.weight")[0],
    norm_eps=1e-5 if name == "convnext_xxlarge" else 1e-6,
    image_size=side or 224,
    dtype="float32",
  )


def _vitamin(found, side, pool, arrays, where):
  if pool not in ("", "avg"):
    raise UserError(f"{where}: timm_pool {pool!r:.50} is not one that can be read for {found[0]}.")
  shape = _shape(arrays, where)
  backbone = "patch_embed.backbone."
  return call(
    Vitamin,
    image_size=side or int(found[2]),
    stages=tuple(_count(arrays, rf"patch_embed\.backbone\.stages\.{i}\.(\d+)\.") for i in (0, 1)),
    channels=tuple(shape(f"{backbone}stages.{i}.0.conv3_1x1.weight")[0] for i in (0, 1)),
    width=shape("fc_norm.weight")[0],
    positions="learned" if found[1] != "xlarge" else "none",
    depth=_count(arrays, r"blocks\.(\d+)\."),
    num_heads=_HEADS[found[1]],
    mlp_dim=shape("blocks.0.mlp.w0.weight")[0],
    dtype="float32",
  )


def adapted(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Completes the biases of attention: EVA has none for keys, and others none at all.

  Zeros are the same function, and what these libraries would start from.
  """
  out = dict(arrays)
  for name, x in arrays.items():
    if not name.startswith(f"{TRUNK}blocks.") or not name.endswith(
      ("attn.qkv.weight", "attn.k_proj.weight")
    ):
      continue
    block, bias = name.rpartition("attn.")[0] + "attn.", name.removesuffix("weight") + "bias"
    if bias in arrays:
      continue
    out[bias] = np.zeros(x.shape[0], np.float32)
    if f"{block}q_bias" in out and f"{block}v_bias" in out:
      q, v = out.pop(f"{block}q_bias"), out.pop(f"{block}v_bias")
      out[bias] = np.concatenate([q, np.zeros_like(q), v]).astype(np.float32)
  return out


def names(name: str, arrays: dict) -> list[Name]:
  """Returns the name table of a timm model and the projection after it."""
  if _CONVNEXT.fullmatch(name):
    rows = _convnext_names()
  elif _VITAMIN.fullmatch(name):
    rows = _vitamin_names(arrays)
  else:
    rows = _vit_names(arrays)
  head = "trunk.head" if f"{TRUNK}head.weight" in arrays else "head.proj"
  return [
    *prefixed(TRUNK, "image/", rows),
    *linear(f"visual.{head}", "image_projection"),
    *linear("visual.head.mlp.fc1", "image_projection/hidden"),
    *linear("visual.head.mlp.fc2", "image_projection/output"),
  ]


def projection(arrays: dict, config: dict) -> tuple[str, int | None]:
  """Returns the kind of the projection after a trunk and its hidden width, if it has one."""
  kind, affine = config.pop("timm_proj", "linear"), config.pop("timm_proj_bias", False)
  if f"{TRUNK}head.weight" in arrays:
    return "affine", None
  if kind == "mlp" and not affine and "visual.head.mlp.fc1.weight" in arrays:
    return "gelu_mlp", arrays["visual.head.mlp.fc1.weight"].shape[0]
  if kind not in ("linear", "none"):
    config["timm_proj"] = kind  # An error.
  return "none" if kind == "none" else "affine" if affine else "linear", None


def _vit_names(arrays):
  has = lambda name: f"{TRUNK}blocks.0.{name}" in arrays
  separate = [
    row
    for i, name in enumerate("qkv")
    for row in linear(f"attn.{name}_proj", "attention/qkv", of(i, 1, matrix), of(i, 0, vector))
  ]
  scales = ("gamma_1", "gamma_2") if has("gamma_1") else ("ls1.gamma", "ls2.gamma")
  gated = [*linear("mlp.fc1_g", "mlp/gate"), *linear("mlp.fc1_x", "mlp/up")]
  block = [
    *layer_norm("norm1", "norm_attention"),
    *(separate if has("attn.q_proj.weight") else linear("attn.qkv", "attention/qkv")),
    *layer_norm("attn.q_norm", "attention/query_norm"),
    *layer_norm("attn.k_norm", "attention/key_norm"),
    *layer_norm("attn.norm", "attention/out_norm"),
    *linear("attn.proj", "attention/out", matrix_of_heads),
    Name(scales[0], "scale_attention"),
    *layer_norm("norm2", "norm_mlp"),
    *(gated if has("mlp.fc1_g.weight") else linear("mlp.fc1", "mlp/up")),
    *layer_norm("mlp.norm", "mlp/norm"),
    *linear("mlp.fc2", "mlp/down"),
    Name(scales[1], "scale_mlp"),
  ]
  norm = "fc_norm" if f"{TRUNK}fc_norm.weight" in arrays else "norm"
  return [
    Name("patch_embed.proj.weight", "embedding/kernel", patch),
    Name("patch_embed.proj.bias", "embedding/bias"),
    Name("cls_token", "class_token", lambda x: x[None, None]),
    Name("reg_token", "registers", lambda x: x[None]),
    Name("pos_embed", "positions", lambda x: x[None]),
    *layer_norm("norm_pre", "pre_norm"),
    *prefixed("blocks.{}.", "stack/blocks/", block),
    *layer_norm(norm, "norm"),
    *prefixed("attn_pool.", "head/", MAP_HEAD),
  ]


MAP_HEAD = [
  Name("latent", "probe", lambda x: x[None, None]),
  *linear("q", "query"),
  *linear("kv", "key_value"),
  *linear("proj", "out", matrix_of_heads),
  *layer_norm("norm", "norm"),
  *linear("mlp.fc1", "mlp/up"),
  *linear("mlp.fc2", "mlp/down"),
]


def _convnext_names():
  rows = [
    *linear("stem.0", "stem", patch),
    *layer_norm("stem.1", "stem_norm"),
    *layer_norm("head.norm", "norm"),
  ]
  block = [
    Name("conv_dw.weight", "kernel", convolution),
    Name("conv_dw.bias", "bias"),
    *layer_norm("norm", "norm"),
    *linear("mlp.fc1", "mlp/up"),
    *linear("mlp.fc2", "mlp/down"),
    Name("gamma", "scale"),
  ]
  for i in range(4):
    rows += prefixed(f"stages.{i}.blocks.{{}}.", f"stacks/{i}/blocks/", block)
    if i:
      rows += layer_norm(f"stages.{i}.downsample.0", f"norms/{i - 1}")
      rows += linear(f"stages.{i}.downsample.1", f"reductions/{i - 1}", convolution_patch)
  return rows


def _vitamin_names(arrays):
  block = [
    *layer_norm("norm1", "norm_attention"),
    *linear("attn.qkv", "attention/qkv"),
    *linear("attn.proj", "attention/out", matrix_of_heads),
    *layer_norm("norm2", "norm_mlp"),
    *layer_norm("mlp.norm", "mlp/input_norm"),
    *linear("mlp.w0", "mlp/mlp/gate"),
    *linear("mlp.w1", "mlp/mlp/up"),
    *linear("mlp.w2", "mlp/mlp/down"),
  ]
  backbone = [
    *linear("stem.conv1", "stem/0", convolution),
    *layer_norm("stem.norm1", "stem_norm"),
    *linear("stem.conv2", "stem/1", convolution),
    *layer_norm("pool.norm", "reduction_norm"),
    *linear("pool.proj", "reduction", convolution),
  ]
  for stage in (0, 1):
    for i in range(_count(arrays, rf"patch_embed\.backbone\.stages\.{stage}\.(\d+)\.")):
      theirs, ours = f"stages.{stage}.{i}.", f"stages/{stage}/{i}/"
      backbone += [
        *layer_norm(f"{theirs}pre_norm", f"{ours}norm"),
        *linear(f"{theirs}conv1_1x1", f"{ours}expand", pointwise),
        *linear(f"{theirs}conv2_kxk", f"{ours}depthwise", convolution),
        *linear(f"{theirs}conv3_1x1", f"{ours}project", pointwise),
        *linear(f"{theirs}shortcut.expand", f"{ours}shortcut", pointwise),
      ]
  return [
    *prefixed("patch_embed.backbone.", "", backbone),
    Name("pos_embed", "positions", lambda x: x[None]),
    *prefixed("blocks.{}.", "stack/blocks/", block),
    *layer_norm("fc_norm", "norm"),
  ]
