"""Name tables of open_clip's towers."""

import numpy as np

from clip_jax.pretrained.name_table import (
  Name,
  convolution,
  layer_norm,
  linear,
  matrix,
  matrix_of_heads,
  of,
  patch,
  prefixed,
  vector,
)

BLOCK = [
  *layer_norm("ln_1", "norm_attention"),
  Name("attn.in_proj_weight", "attention/qkv/kernel", matrix),
  Name("attn.in_proj_bias", "attention/qkv/bias", vector),
  *linear("attn.out_proj", "attention/out", matrix_of_heads),
  Name("ls_1.gamma", "scale_attention"),
  *layer_norm("ln_2", "norm_mlp"),
  *linear("mlp.c_fc", "mlp/up"),
  *linear("mlp.c_proj", "mlp/down"),
  Name("ls_2.gamma", "scale_mlp"),
]
# CoCa's attentional pooling, after `attention_pool_adapted`.
ATTENTION_POOL = prefixed(
  "visual.attn_pool.",
  "image/head/",
  [
    Name("probe", "probe"),
    Name("attn.q_proj_weight", "query/kernel", matrix),
    Name("attn.k_proj_weight", "key_value/kernel", of(0, 1, matrix)),
    Name("attn.v_proj_weight", "key_value/kernel", of(1, 1, matrix)),
    # One array with the queries first, then the keys and values.
    Name("attn.in_proj_bias", "query/bias", vector),
    Name("attn.in_proj_bias", "key_value/bias", vector),
    *linear("attn.out_proj", "out", matrix_of_heads),
  ],
)
VIT = [
  Name("visual.conv1.weight", "image/embedding/kernel", patch),
  Name("visual.class_embedding", "image/class_token"),
  Name("visual.positional_embedding", "image/positions"),
  *layer_norm("visual.ln_pre", "image/pre_norm"),
  *prefixed("visual.transformer.resblocks.{}.", "image/stack/blocks/", BLOCK),
  *layer_norm("visual.ln_post", "image/norm"),
  Name("visual.proj", "image_projection/kernel"),
]
COCA = [
  *[row for row in VIT if not row.theirs.startswith("visual.ln_post")],
  *layer_norm("visual.attn_pool.ln_k", "image/norm"),
  *layer_norm("visual.ln_post", "image/head/norm"),
  *ATTENTION_POOL,
]
TRUNK = [
  Name("visual.trunk.patch_embed.proj.weight", "image/embedding/kernel", patch),
  Name("visual.trunk.patch_embed.proj.bias", "image/embedding/bias"),
  Name("visual.trunk.pos_embed", "image/positions", lambda x: x[None]),
  *prefixed(
    "visual.trunk.blocks.{}.",
    "image/stack/blocks/",
    [
      *layer_norm("norm1", "norm_attention"),
      *linear("attn.qkv", "attention/qkv"),
      *linear("attn.proj", "attention/out", matrix_of_heads),
      *layer_norm("norm2", "norm_mlp"),
      *linear("mlp.fc1", "mlp/up"),
      *linear("mlp.fc2", "mlp/down"),
    ],
  ),
  *layer_norm("visual.trunk.norm", "image/norm"),
  *prefixed(
    "visual.trunk.attn_pool.",
    "image/head/",
    [
      Name("latent", "probe", lambda x: x[None, None]),
      *linear("q", "query"),
      *linear("kv", "key_value"),
      *linear("proj", "out", matrix_of_heads),
      *layer_norm("norm", "norm"),
      *linear("mlp.fc1", "mlp/up"),
      *linear("mlp.fc2", "mlp/down"),
    ],
  ),
  *linear("visual.head.proj", "image_projection"),
]
SCALARS = [Name("logit_scale", "log_scale")]
BIAS = [Name("logit_bias", "bias")]


def attention_pool_adapted(arrays: dict[str, np.ndarray], eps: float) -> dict[str, np.ndarray]:
  """Reduces CoCa to its contrastive part: no text decoder, and the first query of the pooling.

  The query is stored after its norm, which is a constant.
  """
  pool, out = "visual.attn_pool.", {}
  for name, x in arrays.items():
    if name.startswith(("text_decoder.", f"{pool}query", f"{pool}ln_q")):
      continue
    if name == f"{pool}attn.in_proj_weight":
      parts = np.split(x, 3)
      out |= {f"{pool}attn.{kind}_proj_weight": part for kind, part in zip("qkv", parts)}
    else:
      out[name] = x
  if f"{pool}query" in arrays:
    query = np.asarray(arrays[f"{pool}query"][0], np.float32)
    query = (query - query.mean()) / np.sqrt(query.var() + eps)
    scale, bias = (np.asarray(arrays[f"{pool}ln_q.{name}"], np.float32) for name in _SCALE_BIAS)
    out[f"{pool}probe"] = query * scale + bias
  return out


_SCALE_BIAS = ("weight", "bias")


def text_table(prefix: str, *, affine: bool) -> list[Name]:
  """Returns the rows of the text tower.

  Args:
    prefix: "text." for a CustomTextCLIP, otherwise "".
    affine: whether the projection has a bias.
  """
  projection = (
    linear(f"{prefix}text_projection", "text_projection")
    if affine
    else [Name(f"{prefix}text_projection", "text_projection/kernel")]
  )
  return [
    Name(f"{prefix}token_embedding.weight", "text/embedding"),
    Name(f"{prefix}positional_embedding", "text/positions"),
    Name(f"{prefix}cls_emb", "text/class_token"),
    *prefixed(f"{prefix}transformer.resblocks.{{}}.", "text/stack/blocks/", BLOCK),
    *layer_norm(f"{prefix}ln_final", "text/norm"),
    *projection,
  ]


def resnet_table(stages: tuple[int, ...]) -> list[Name]:
  """Returns the rows of a ModifiedResNet."""
  rows = []

  def add(theirs, number, ours, norm):
    rows.append(Name(f"{theirs}{number[0]}.weight", f"{ours}/kernel", convolution))
    bn = f"{theirs}{number[1]}"
    rows.extend(
      [
        Name(f"{bn}.weight", f"{norm}/scale"),
        Name(f"{bn}.bias", f"{norm}/bias"),
        Name(f"{bn}.running_mean", f"{norm}/mean"),
        Name(f"{bn}.running_var", f"{norm}/variance"),
      ]
    )

  for i in range(3):
    add("visual.", (f"conv{i + 1}", f"bn{i + 1}"), f"image/stem/{i}", f"image/stem_norms/{i}")
  for s, depth in enumerate(stages):
    for j in range(depth):
      theirs, ours = f"visual.layer{s + 1}.{j}.", f"image/stages/{s}/{j}"
      for i in range(3):
        add(theirs, (f"conv{i + 1}", f"bn{i + 1}"), f"{ours}/convolutions/{i}", f"{ours}/norms/{i}")
      add(f"{theirs}downsample.", ("0", "1"), f"{ours}/shortcut", f"{ours}/shortcut_norm")
  return [
    *rows,
    Name("visual.attnpool.positional_embedding", "image/head/positions"),
    *linear("visual.attnpool.q_proj", "image/head/query"),
    *linear("visual.attnpool.k_proj", "image/head/key_value", of(0, 1, matrix), of(0, 0, vector)),
    *linear("visual.attnpool.v_proj", "image/head/key_value", of(1, 1, matrix), of(1, 0, vector)),
    *linear("visual.attnpool.c_proj", "image_projection"),
  ]
