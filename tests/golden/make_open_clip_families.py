"""Makes tiny open_clip checkpoints of towers that are only read; see README.md.

golden/bin/python tests/golden/make_open_clip_families.py
"""

from functools import partial
import json

import make
import open_clip
import safetensors.torch
import timm
from timm.layers import LayerNorm
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vitamin import GeGluMlp, VitCfg, VitConvCfg, _create_vitamin
import torch

SIZE = 32
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": SIZE, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8}


def register(name, kind, **arguments):
  """Registers a small model under a name of timm's."""

  def made(pretrained=False, **given):
    given = {k: given[k] for k in ("num_classes", "global_pool") if k in given}
    model = kind(**{**arguments, **given})
    model.default_cfg = {"pool_size": None}
    return model

  made.__module__ = "timm.models.vision_transformer"
  timm.models._registry._model_entrypoints[name] = made


def save(name, config):
  folder = make.fresh(name)
  custom = config.get("custom_text", False)
  kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CLIP
  options = {k: x for k, x in config.items() if k != "custom_text"}
  model = (open_clip.CustomTextCLIP if custom and kind is open_clip.CLIP else kind)(**options)
  model = make.shake(model, torch.float16)
  text = config["text_cfg"]
  image, tokens = make.inputs(SIZE, text["context_length"], text["vocab_size"], end=63)
  mean, std = (torch.tensor(make.OPENAI[key])[:, None, None] for key in ("mean", "std"))
  pixels = (torch.from_numpy(image).permute(0, 3, 1, 2) / 255 - mean) / std
  half = lambda x: x.half() if x.dtype.is_floating_point else x
  arrays = {k: half(x).contiguous() for k, x in model.state_dict().items()}
  safetensors.torch.save_file(arrays, folder / "open_clip_model.safetensors")
  (folder / "open_clip_config.json").write_text(
    json.dumps({"model_cfg": config, "preprocess_cfg": make.OPENAI}, indent=2)
  )
  with torch.no_grad():
    z_image = model.encode_image(pixels, normalize=True)
    z_text = model.encode_text(torch.from_numpy(tokens).long(), normalize=True)
    scale = float(model.logit_scale.exp())
    make.save_outputs(folder, image, tokens, z_image, z_text, scale)


def with_trunk(name, pool, projection, **vision):
  return {
    "embed_dim": 12,
    "custom_text": True,
    "vision_cfg": {
      "image_size": SIZE,
      "timm_model_name": name,
      "timm_model_pretrained": False,
      "timm_pool": pool,
      "timm_proj": projection,
      **vision,
    },
    "text_cfg": TEXT,
  }


def own_towers():
  pooled = {**VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
  plain = {**TEXT, "pool_type": "last", "no_causal_mask": True}
  save("open_clip_clipa", {"embed_dim": 12, "vision_cfg": pooled, "text_cfg": plain})
  scaled = {"vision_cfg": {**VIT, "ls_init_value": 1e-4}, "text_cfg": TEXT}
  save("open_clip_layer_scale", {"embed_dim": 12, **scaled})
  save(
    "open_clip_coca",
    {
      "embed_dim": 16,
      "custom_text": True,
      "vision_cfg": {
        **VIT,
        "attentional_pool": True,
        "attn_pooler_heads": 4,
        "attn_pooler_queries": 3,
        "output_tokens": True,
      },
      "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
      "multimodal_cfg": {**TEXT, "layers": 1, "attn_pooler_heads": 2},
    },
  )


def trunks():
  small = dict(img_size=SIZE, patch_size=8, depth=2)
  eva02 = dict(embed_dim=96, num_heads=12, mlp_ratio=1.0, qkv_fused=False, swiglu_mlp=True)
  eva02 |= dict(scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True)
  register("eva02_base_patch8_clip_32", Eva, **small, **eva02, ref_feat_shape=(16, 16))
  save("open_clip_eva02", with_trunk("eva02_base_patch8_clip_32", "token", None))
  register(
    "eva02_enormous_patch8_clip_32", Eva, **small, embed_dim=64, num_heads=16, use_post_norm=True
  )
  save("open_clip_eva02_enormous", with_trunk("eva02_enormous_patch8_clip_32", "token", None))
  register(
    "vit_pe_core_tiny_patch8_32",
    Eva,
    **small,
    embed_dim=48,
    num_heads=3,
    attn_type="rope",
    use_pre_transformer_norm=True,
    use_rot_pos_emb=True,
    ref_feat_shape=(4, 4),
    rope_grid_offset=1.0,
    rope_grid_indexing="xy",
    attn_pool_num_heads=8,
    attn_pool_mlp_ratio=2.0,
    norm_layer=partial(LayerNorm, eps=1e-5),
  )
  save("open_clip_pe_core", with_trunk("vit_pe_core_tiny_patch8_32", "map", None))
  gap = dict(class_token=False, qkv_bias=False, init_values=1e-6, fc_norm=False)
  register(
    "vit_medium_patch8_gap_32",
    VisionTransformer,
    **small,
    **gap,
    embed_dim=32,
    num_heads=8,
    global_pool="avg",
  )
  save("open_clip_vit_gap", with_trunk("vit_medium_patch8_gap_32", "", "linear"))
  register("convnext_tiny", ConvNeXt, depths=(1, 2, 1, 1), dims=(8, 16, 32, 64))
  save("open_clip_convnext", with_trunk("convnext_tiny", "", "mlp"))
  register("vitamin_small_32", vitamin)
  save("open_clip_vitamin", with_trunk("vitamin_small_32", "", "linear"))


def vitamin(**given):
  stages = VitCfg(
    embed_dim=(8, 16, 24),
    depths=(1, 2, 1),
    stem_width=8,
    conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
    head_type="1d",
  )
  shape = dict(img_size=SIZE, embed_dim=24, depth=2, num_heads=6, mlp_layer=GeGluMlp, mlp_ratio=2.0)
  return _create_vitamin(
    "vitamin_small_224", **shape, class_token=False, global_pool="avg", embed_cfg=stages
  )


if __name__ == "__main__":
  torch.manual_seed(0)
  own_towers()
  trunks()
