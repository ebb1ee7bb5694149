"""Checkpoints of other libraries give the original outputs and survive a round trip."""

import json
import shutil

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax import export
from clip_jax.errors import UserError
from clip_jax.inference.loading import load_bundle
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.pretrained import big_vision, hugging_face, open_clip, safetensors_file
from golden_checkpoints import (
  GOLDENS,
  TEXTS,
  encode_inputs,
  load_golden,
  normalise,
  reference_outputs,
)

FORMATS = {"open_clip": open_clip, "huggingface": hugging_face, "big_vision": big_vision}


def module(name):
  return next(form for prefix, form in FORMATS.items() if name.startswith(prefix))


@pytest.mark.parametrize("name", GOLDENS)
def test_embeddings_match_the_original_library(name):
  expected = reference_outputs(name)
  for z, key in zip(encode_inputs(load_golden(name), name), ("z_image", "z_text")):
    np.testing.assert_allclose(z, normalise(expected[key]), rtol=1e-4, atol=1e-6)
  assert load_golden(name).scale == pytest.approx(float(expected["scale"]), rel=1e-6)
  assert load_golden(name).bias == pytest.approx(float(expected["bias"]), rel=1e-6)


@pytest.mark.parametrize("name", [n for n in GOLDENS if "text_tokens" in reference_outputs(n)])
def test_the_tokenizer_matches_the_original_library(name):
  np.testing.assert_array_equal(
    load_golden(name).tokenize(TEXTS), reference_outputs(name)["text_tokens"]
  )
  assert np.isfinite(load_golden(name).encode_text(TEXTS)).all()


@pytest.mark.parametrize("name", [n for n in GOLDENS if "picture" in reference_outputs(n)])
def test_preprocessing_matches_the_original_library(name):
  np.testing.assert_array_equal(
    load_golden(name).preprocess(reference_outputs(name)["picture"]),
    reference_outputs(name)["picture_seen"],
  )


def arrays_of(name, where):
  if name.startswith("big_vision"):
    return big_vision._arrays(where)
  return safetensors_file.read(where / module(name).WEIGHTS)


@pytest.mark.parametrize("name", GOLDENS)
def test_a_checkpoint_survives_a_round_trip(name, tmp_path, monkeypatch):
  if name == "open_clip_siglip":  # timm has no tower this small.
    monkeypatch.setitem(open_clip.sizes.SIZES, "B", (36, 2, 144, 12))
    monkeypatch.setitem(open_clip.TIMM_EXACT, "base", {(16, 32)})
  out = tmp_path / ("out.npz" if name.startswith("big_vision") else "out")
  saved = load_bundle(GOLDENS[name][0])
  module(name).write(saved, out)
  there, here = arrays_of(name, GOLDENS[name][0]), arrays_of(name, out)
  assert there.keys() == here.keys()
  for key, x in there.items():
    assert x.shape == here[key].shape, key
    if "num_batches_tracked" not in key:
      # The scale is read as exp(log_scale) and written as its logarithm.
      np.testing.assert_allclose(
        x.astype(np.float32),
        here[key],
        rtol=3e-7 if "logit" in key or key == "t" else 0,
        err_msg=key,
      )
  again = load_bundle(out)
  assert again.model == saved.model
  assert all(
    (x == y).all()
    for x, y in zip(
      jax.tree.leaves((saved.params, saved.stats)), jax.tree.leaves((again.params, again.stats))
    )
  )
  if "text_tokens" in reference_outputs(name):
    np.testing.assert_array_equal(again.tokenizer(TEXTS), reference_outputs(name)["text_tokens"])
  pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
  np.testing.assert_array_equal(again.preprocess(pixels), saved.preprocess(pixels))


def test_a_checkpoint_is_converted_to_another_format(tmp_path):
  out = tmp_path / "there"
  export.main(
    [f"--model={GOLDENS['open_clip_quickgelu'][0]}", "--format=huggingface", f"--out={out}"]
  )
  config = json.loads((out / "config.json").read_text())
  assert config["model_type"] == "clip" and config["text_config"]["hidden_act"] == "quick_gelu"
  there = reference_outputs("open_clip_quickgelu")
  z_image, z_text = encode_inputs(clip_jax.load(out), "open_clip_quickgelu")
  np.testing.assert_allclose(z_image, normalise(there["z_image"]), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(z_text, normalise(there["z_text"]), rtol=1e-4, atol=1e-6)
  for origin, form in (("huggingface_siglip", "open_clip"), ("big_vision_lit", "huggingface")):
    with pytest.raises(UserError, match="can export to open_clip: Vit in OpenAI's form"):
      export.main([f"--model={GOLDENS[origin][0]}", f"--format={form}", f"--out={out}"])


def test_a_big_vision_model_converts_to_hugging_faces_siglip(tmp_path):
  hugging_face.write(load_bundle(GOLDENS["big_vision_siglip"][0]), tmp_path)
  z_image, z_text = encode_inputs(clip_jax.load(tmp_path), "big_vision_siglip")
  np.testing.assert_allclose(
    z_image, normalise(reference_outputs("big_vision_siglip")["z_image"]), rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(
    z_text, normalise(reference_outputs("big_vision_siglip")["z_text"]), rtol=1e-4, atol=1e-6
  )


def copy(name, tmp_path, **changes):
  """Copies a golden checkpoint and replaces some of its arrays; None removes one."""
  folder = tmp_path / name
  shutil.copytree(GOLDENS[name][0], folder)
  file = folder / module(name).WEIGHTS
  arrays = {k: np.array(x) for k, x in safetensors_file.read(file).items()}
  for key, x in changes.items():
    arrays.pop(key) if x is None else arrays.update({key: x})
  safetensors_file.write(file, arrays)
  return folder


def test_the_error_lists_missing_extra_and_misshapen_arrays_and_counts_the_rest(tmp_path):
  changes = {
    "visual.proj": None,
    "ln_final.weight": np.ones(7, np.float32),
    **{f"other.{i}": np.ones(1, np.float32) for i in range(6)},
  }
  folder = copy("open_clip_vit", tmp_path, **changes)
  with pytest.raises(UserError) as e:
    clip_jax.load(folder)
  message = str(e.value)
  assert "8 arrays differ" in message and "and 3 more" in message
  assert r"ln_final.weight: saved (7,), expected (32,)" in message
  assert "visual.proj: not saved, expected (32, 24)" in message
  assert "other.0: saved (), not expected" in message
  assert "The config does not match the weights" in message


def test_constant_buffers_in_a_checkpoint_are_ignored(tmp_path):
  folder = copy(
    "huggingface_clip", tmp_path, **{"text_model.embeddings.position_ids": np.arange(8)[None]}
  )
  assert (
    leaves_by_name(load_bundle(folder).params)["text/positions"]
    == leaves_by_name(load_bundle(GOLDENS["huggingface_clip"][0]).params)["text/positions"]
  ).all()


def test_the_text_tower_may_have_a_prefix(tmp_path):
  """In a CustomTextCLIP of open_clip, the names of the text tower start with "text."."""
  folder = copy("open_clip_vit", tmp_path)
  file = folder / "open_clip_model.safetensors"
  arrays = {
    k if k.startswith(("visual.", "logit")) else f"text.{k}": np.array(x)
    for k, x in safetensors_file.read(file).items()
  }
  safetensors_file.write(file, arrays)
  there = load_bundle(GOLDENS["open_clip_vit"][0])
  assert all(
    (x == y).all()
    for x, y in zip(jax.tree.leaves(there.params), jax.tree.leaves(load_bundle(folder).params))
  )


def test_sharded_weights_are_read(tmp_path):
  folder = copy("huggingface_clip", tmp_path)
  arrays = {k: np.array(x) for k, x in safetensors_file.read(folder / "model.safetensors").items()}
  (folder / "model.safetensors").unlink()
  halves = [dict(list(arrays.items())[i::2]) for i in range(2)]
  for i, half in enumerate(halves):
    safetensors_file.write(folder / f"part{i}.safetensors", half)
  (folder / "model.safetensors.index.json").write_text(
    json.dumps(
      {"weight_map": {k: f"part{i}.safetensors" for i, half in enumerate(halves) for k in half}}
    )
  )
  whole = load_bundle(GOLDENS["huggingface_clip"][0])
  assert all(
    (x == y).all()
    for x, y in zip(jax.tree.leaves(whole.params), jax.tree.leaves(load_bundle(folder).params))
  )


def described(name, tmp_path, change):
  """Copies a golden checkpoint and changes its config."""
  folder = tmp_path / name
  shutil.copytree(GOLDENS[name][0], folder, dirs_exist_ok=True)
  file = folder / module(name).CONFIG
  config = json.loads(file.read_text())
  change(config)
  file.write_text(json.dumps(config))
  return folder


@pytest.mark.parametrize(
  "name, change, message",
  [
    ("open_clip_vit", lambda c: c.pop("model_cfg"), "no model_cfg, so it is not an open_clip"),
    (
      "open_clip_vit",
      lambda c: c["model_cfg"]["vision_cfg"].update(qk_norm=True),
      r"vision_cfg has \{'qk_norm': True\}, which clip_jax does not support. It reads",
    ),
    ("open_clip_vit", lambda c: c["model_cfg"]["vision_cfg"].update(pool_type="none"), "pool_type"),
    (
      "open_clip_resnet",
      lambda c: c["model_cfg"]["vision_cfg"].update(attentional_pool=True),
      "attentional_pool",
    ),
    (
      "open_clip_vit",
      lambda c: c["model_cfg"]["text_cfg"].update(hf_model_name="roberta-base"),
      "text_cfg has {'hf_model_name': 'roberta-base'}",
    ),
    ("open_clip_vit", lambda c: c["model_cfg"]["text_cfg"].update(pool_type="first"), "pool_type"),
    (
      "open_clip_siglip",
      lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="resnet50"),
      "image tower resnet50. timm models are read if they are SigLIP",
    ),
    (
      "open_clip_siglip",
      lambda c: c["model_cfg"]["vision_cfg"].update(timm_proj="mlp"),
      "'timm_proj': 'mlp'",
    ),
    (
      "huggingface_clip",
      lambda c: c.update(model_type="bert"),
      "of type 'bert'. .*can be read are 'clip' and 'siglip'",
    ),
    (
      "huggingface_clip",
      lambda c: c["text_config"].update(hidden_act="swish"),
      "Unsupported activation 'swish'. .*can be read are quick_gelu",
    ),
    (
      "huggingface_siglip",
      lambda c: c["vision_config"].update(vision_use_head=False),
      "without a pooling head",
    ),
  ],
)
def test_unsupported_configs_are_refused(name, change, message, tmp_path):
  with pytest.raises(UserError, match=message):
    load_bundle(described(name, tmp_path, change))


def test_a_truncated_config_is_an_error(tmp_path):
  folder = described("huggingface_clip", tmp_path, lambda c: None)
  (folder / "config.json").write_text('{"model_type": ')
  with pytest.raises(UserError, match="config.json is not JSON: .* Download it again"):
    load_bundle(folder)


def test_end_token_2_in_an_old_config_means_the_largest_id(tmp_path):
  folder = described(
    "huggingface_clip", tmp_path, lambda c: c["text_config"].update(eos_token_id=2)
  )
  text = load_bundle(folder).model.text
  assert (text.pool, text.eos_id) == ("argmax", None)


def test_a_missing_tokenizer_is_an_error_only_when_texts_are_encoded(tmp_path):
  embedder = load_golden("open_clip_vit")
  with pytest.raises(UserError, match="needs the tokenizer of its vocabulary, but there is no"):
    embedder.encode_text(["a dog"])
  folder = described("huggingface_siglip", tmp_path, lambda c: None)
  (folder / "spiece.model").unlink()
  with pytest.raises(UserError, match="has no tokenizer: .*nor spiece.model"):
    load_bundle(folder).tokenizer(["a dog"])
  with pytest.raises(UserError, match="does not include its tokenizer. Put its SentencePiece"):
    load_golden("big_vision_siglip").encode_text(["a dog"])


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda a: a.pop("params/t"), "not a big_vision two-tower model: it lacks t"),
    (lambda a: a.pop("params/img/Transformer/encoderblock/LayerNorm_0/scale"), "encoderblock_0"),
    (lambda a: a.update({"params/img/pos_embedding": np.ones((1, 8, 32))}), "8 image positions"),
    (lambda a: a.update({"params/img/pos_embedding": np.array([None])}), "not an .npz file of"),
  ],
)
def test_an_npz_of_another_kind_is_an_error(change, message, tmp_path):
  arrays = dict(np.load(GOLDENS["big_vision_siglip"][0]))
  change(arrays)
  np.savez(tmp_path / "x.npz", **arrays)
  with pytest.raises(UserError, match=message):
    load_bundle(tmp_path / "x.npz")


def test_a_tokenizer_in_the_folder_of_an_npz_is_used(tmp_path):
  shutil.copy(GOLDENS["big_vision_siglip"][0], tmp_path / "x.npz")
  shutil.copy(GOLDENS["huggingface_siglip"][0] / "spiece.model", tmp_path / "c4.model")
  tokens = load_bundle(tmp_path / "x.npz").tokenizer(["a dog"])
  assert tokens.shape == (1, 8) and (tokens[0, -3:] == 1).all()
