"""Towers of open_clip and timm that are read but not written give the original outputs."""

import json
import shutil

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.errors import UserError
from clip_jax.inference.loading import load_bundle
from clip_jax.pretrained import open_clip, safetensors_file, saved_tokenizers
from golden_checkpoints import FOLDER, normalise

FAMILIES = (
  "clipa",
  "coca",
  "convnext",
  "eva02",
  "eva02_enormous",
  "layer_scale",
  "pe_core",
  "vit_gap",
  "vitamin",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_match_the_original_library(name):
  folder = FOLDER / f"open_clip_{name}"
  expected = np.load(folder / "outputs.npz")
  embedder = clip_jax.load(folder)
  assert embedder.scale == pytest.approx(float(expected["scale"]), rel=1e-5)
  encode = jax.jit(
    lambda model, image, tokens: (model.encode_image(image), model.encode_text(tokens))
  )
  found = encode(embedder.model, expected["image"], expected["tokens"])
  for z, key in zip(found, ("z_image", "z_text")):
    np.testing.assert_allclose(z, normalise(expected[key]), atol=2e-5, err_msg=key)


def changed(name, tmp_path, change=lambda config: None, arrays=lambda arrays: None):
  folder = tmp_path / name
  shutil.copytree(FOLDER / name, folder)
  config = json.loads((folder / open_clip.CONFIG).read_text())
  change(config["model_cfg"])
  (folder / open_clip.CONFIG).write_text(json.dumps(config))
  saved = dict(safetensors_file.read(folder / open_clip.WEIGHTS))
  saved = {key: np.array(x) for key, x in saved.items()}
  arrays(saved)
  safetensors_file.write(folder / open_clip.WEIGHTS, saved)
  return folder


@pytest.mark.parametrize(
  "name, change, message",
  [
    (
      "open_clip_coca",
      lambda c: c["vision_cfg"].update(attentional_pool="parallel"),
      "'attentional_pool': 'parallel'",
    ),
    (
      "open_clip_coca",
      lambda c: c["text_cfg"].update(correct_cls_mask=True),
      "'correct_cls_mask': True",
    ),
    (
      "open_clip_convnext",
      lambda c: c["vision_cfg"].update(timm_pool="abs_attn"),
      "timm_pool 'abs_attn' is not one that can be read for convnext_tiny",
    ),
    (
      "open_clip_eva02",
      lambda c: c["vision_cfg"].update(timm_model_name="fastvit_mci0"),
      "cannot read the image tower fastvit_mci0. timm models are read if they are SigLIP's",
    ),
  ],
)
def test_what_is_not_supported_is_named(name, change, message, tmp_path):
  with pytest.raises(UserError, match=message):
    load_bundle(changed(name, tmp_path, change))


def test_missing_arrays_of_a_trunk_are_named(tmp_path):
  folder = changed(
    "open_clip_vitamin", tmp_path, arrays=lambda x: x.pop("visual.trunk.fc_norm.weight")
  )
  with pytest.raises(UserError, match="the weights have no visual.trunk.fc_norm.weight"):
    load_bundle(folder)
  folder = changed(
    "open_clip_convnext", tmp_path, arrays=lambda x: x.pop("visual.trunk.stages.1.blocks.0.gamma")
  )
  with pytest.raises(UserError, match=r"stages.1.blocks.0.gamma: not saved, expected \(16,\)"):
    load_bundle(folder)


def test_only_the_first_query_of_coca_and_no_decoder_is_kept():
  saved = load_bundle(FOLDER / "open_clip_coca")
  assert saved.model.image.pool == "attn" and saved.model.text.pool == "cls"
  assert saved.params["image"]["head"]["probe"].shape == (16,)


def test_clipas_tokenizer_replaces_the_separator_by_zero(tmp_path):
  def use_tokenizer(config):
    config["text_cfg"].update(tokenizer_kwargs={"strip_sep_token": True})
    config["text_cfg"].update(hf_tokenizer_name="bert-base-uncased")

  folder = changed("open_clip_clipa", tmp_path, use_tokenizer)
  shutil.copy(FOLDER / "open_clip_siglip" / "tokenizer.json", folder)
  (folder / "tokenizer_config.json").write_text(json.dumps({"sep_token": "</s>"}))
  tokens = load_bundle(folder).tokenizer(["a dog"])  # Words 3 and 4, then </s>, which has id 1.
  np.testing.assert_array_equal(tokens, [[3, 4, 0, 0, 0, 0, 0, 0]])
  with pytest.raises(UserError, match="replaces token 1 by 0, as CLIPA's, cannot be stored"):
    saved_tokenizers.write(load_bundle(folder).tokenizer, tmp_path)
