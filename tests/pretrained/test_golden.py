"""Other libraries' checkpoints make here what they made there, and go back as they came."""

import json
import shutil

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax import export
from clip_jax.errors import UserError
from clip_jax.loading import read
from clip_jax.pretrained import big_vision, hugging_face, open_clip, safetensors
from clip_jax.pretrained.saved import flat
from goldens import GOLDENS, TEXTS, encoded, loaded, outputs, unit

FORMATS = {"open_clip": open_clip, "huggingface": hugging_face, "big_vision": big_vision}


def module(name):
  return next(made for prefix, made in FORMATS.items() if name.startswith(prefix))


@pytest.mark.parametrize("name", GOLDENS)
def test_features_are_those_of_the_original(name):
  made, there = encoded(loaded(name), name), outputs(name)
  for z, of in zip(made, ("z_image", "z_text")):
    np.testing.assert_allclose(z, unit(there[of]), rtol=1e-4, atol=1e-6)
  assert loaded(name).scale == pytest.approx(float(there["scale"]), rel=1e-6)
  assert loaded(name).bias == pytest.approx(float(there["bias"]), rel=1e-6)


@pytest.mark.parametrize("name", [n for n in GOLDENS if "text_tokens" in outputs(n)])
def test_the_tokenizer_beside_it_writes_the_tokens_of_the_original(name):
  np.testing.assert_array_equal(loaded(name).tokenize(TEXTS), outputs(name)["text_tokens"])
  assert np.isfinite(loaded(name).encode_text(TEXTS)).all()


@pytest.mark.parametrize("name", [n for n in GOLDENS if "picture" in outputs(n)])
def test_a_picture_is_prepared_as_by_the_original(name):
  np.testing.assert_array_equal(loaded(name).preprocess(outputs(name)["picture"]),
                                outputs(name)["picture_seen"])


def arrays_of(name, where):
  if name.startswith("big_vision"):
    return big_vision._arrays(where)
  return safetensors.read(where / module(name).WEIGHTS)


@pytest.mark.parametrize("name", GOLDENS)
def test_every_array_comes_back_as_it_came(name, tmp_path, monkeypatch):
  if name == "open_clip_siglip":  # Its tower is smaller than any that timm has.
    monkeypatch.setitem(open_clip.sizes.SIZES, "B", (36, 2, 144, 12))
    monkeypatch.setitem(open_clip.TIMM_EXACT, "base", {(16, 32)})
  out = tmp_path / ("out.npz" if name.startswith("big_vision") else "out")
  saved = read(GOLDENS[name][0])
  module(name).write(saved, out)
  there, here = arrays_of(name, GOLDENS[name][0]), arrays_of(name, out)
  assert there.keys() == here.keys()
  for key, x in there.items():
    assert x.shape == here[key].shape, key
    if "num_batches_tracked" not in key:
      # The scale goes through a logarithm.
      np.testing.assert_allclose(x.astype(np.float32), here[key], rtol=3e-7 if "logit" in key or
                                 key == "t" else 0, err_msg=key)
  again = read(out)
  assert again.model == saved.model
  assert all((x == y).all() for x, y in zip(jax.tree.leaves((saved.params, saved.stats)),
                                            jax.tree.leaves((again.params, again.stats))))
  if "text_tokens" in outputs(name):
    np.testing.assert_array_equal(again.tokenizer(TEXTS), outputs(name)["text_tokens"])
  pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
  np.testing.assert_array_equal(again.preprocess(pixels), saved.preprocess(pixels))


def test_one_format_becomes_another(tmp_path):
  """The same tower, under the names of two libraries."""
  out = tmp_path / "there"
  export.main([f"--from={GOLDENS['open_clip_quickgelu'][0]}", "--format=huggingface",
               f"--out={out}"])
  config = json.loads((out / "config.json").read_text())
  assert config["model_type"] == "clip" and config["text_config"]["hidden_act"] == "quick_gelu"
  there = outputs("open_clip_quickgelu")
  z_image, z_text = encoded(clip_jax.load(out), "open_clip_quickgelu")
  np.testing.assert_allclose(z_image, unit(there["z_image"]), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(z_text, unit(there["z_text"]), rtol=1e-4, atol=1e-6)
  for origin, form in (("huggingface_siglip", "open_clip"), ("big_vision_lit", "huggingface")):
    with pytest.raises(UserError, match="What can be exported: to open_clip, Vit in OpenAI's form"):
      export.main([f"--from={GOLDENS[origin][0]}", f"--format={form}", f"--out={out}"])


def test_big_visions_form_is_hugging_faces_siglip(tmp_path):
  hugging_face.write(read(GOLDENS["big_vision_siglip"][0]), tmp_path)
  z_image, z_text = encoded(clip_jax.load(tmp_path), "big_vision_siglip")
  np.testing.assert_allclose(z_image, unit(outputs("big_vision_siglip")["z_image"]), rtol=1e-4,
                             atol=1e-6)
  np.testing.assert_allclose(z_text, unit(outputs("big_vision_siglip")["z_text"]), rtol=1e-4,
                             atol=1e-6)


def copy(name, tmp_path, **changes):
  """A golden with other arrays; None takes one away."""
  folder = tmp_path / name
  shutil.copytree(GOLDENS[name][0], folder)
  file = folder / module(name).WEIGHTS
  arrays = {k: np.array(x) for k, x in safetensors.read(file).items()}
  for key, x in changes.items():
    arrays.pop(key) if x is None else arrays.update({key: x})
  safetensors.write(file, arrays)
  return folder


def test_missing_extra_and_misshapen_arrays_are_listed_and_the_rest_counted(tmp_path):
  changes = {"visual.proj": None, "ln_final.weight": np.ones(7, np.float32),
             **{f"other.{i}": np.ones(1, np.float32) for i in range(6)}}
  folder = copy("open_clip_vit", tmp_path, **changes)
  with pytest.raises(UserError) as e:
    clip_jax.load(folder)
  message = str(e.value)
  assert "8 arrays differ" in message and "and 3 more" in message
  assert r"ln_final.weight: (7,) there, (32,) here" in message
  assert "visual.proj: not there, (32, 24) here" in message
  assert "other.0: () there, not here" in message
  assert "Its config does not describe its arrays" in message


def test_what_is_not_trained_may_lie_beside_the_weights(tmp_path):
  folder = copy("huggingface_clip", tmp_path, **{
      "text_model.embeddings.position_ids": np.arange(8)[None]})
  assert (flat(read(folder).params)["text/positions"]
          == flat(read(GOLDENS["huggingface_clip"][0]).params)["text/positions"]).all()


def test_a_text_tower_may_lie_apart(tmp_path):
  """As in models that open_clip calls custom."""
  folder = copy("open_clip_vit", tmp_path)
  file = folder / "open_clip_model.safetensors"
  arrays = {k if k.startswith(("visual.", "logit")) else f"text.{k}": np.array(x)
            for k, x in safetensors.read(file).items()}
  safetensors.write(file, arrays)
  there = read(GOLDENS["open_clip_vit"][0])
  assert all((x == y).all() for x, y in zip(
      jax.tree.leaves(there.params), jax.tree.leaves(read(folder).params)))


def test_weights_in_several_files_are_put_together(tmp_path):
  folder = copy("huggingface_clip", tmp_path)
  arrays = {k: np.array(x) for k, x in safetensors.read(folder / "model.safetensors").items()}
  (folder / "model.safetensors").unlink()
  halves = [dict(list(arrays.items())[i::2]) for i in range(2)]
  for i, half in enumerate(halves):
    safetensors.write(folder / f"part{i}.safetensors", half)
  (folder / "model.safetensors.index.json").write_text(json.dumps(
      {"weight_map": {k: f"part{i}.safetensors" for i, half in enumerate(halves) for k in half}}))
  whole = read(GOLDENS["huggingface_clip"][0])
  assert all((x == y).all() for x, y in zip(
      jax.tree.leaves(whole.params), jax.tree.leaves(read(folder).params)))


def described(name, tmp_path, change):
  """A golden with another config."""
  folder = tmp_path / name
  shutil.copytree(GOLDENS[name][0], folder, dirs_exist_ok=True)
  file = folder / module(name).CONFIG
  config = json.loads(file.read_text())
  change(config)
  file.write_text(json.dumps(config))
  return folder


@pytest.mark.parametrize("name, change, message", [
    ("open_clip_vit", lambda c: c.pop("model_cfg"), "no model_cfg; it is not open_clip's"),
    ("open_clip_vit", lambda c: c["model_cfg"]["vision_cfg"].update(ls_init_value=1e-5),
     r"vision_cfg asks for \{'ls_init_value': 1e-05\}, which clip_jax does not have. Read are"),
    ("open_clip_vit", lambda c: c["model_cfg"]["vision_cfg"].update(pool_type="avg"), "pool_type"),
    ("open_clip_resnet", lambda c: c["model_cfg"]["vision_cfg"].update(attentional_pool=True),
     "attentional_pool"),
    ("open_clip_vit", lambda c: c["model_cfg"]["text_cfg"].update(hf_model_name="roberta-base"),
     "text_cfg asks for {'hf_model_name': 'roberta-base'}"),
    ("open_clip_vit", lambda c: c["model_cfg"]["text_cfg"].update(pool_type="first"), "pool_type"),
    ("open_clip_siglip", lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="resnet50"),
     "timm's resnet50; of timm, read are ViTs of the SigLIP family"),
    ("open_clip_siglip", lambda c: c["model_cfg"]["vision_cfg"].update(timm_proj="mlp"),
     "'timm_proj': 'mlp'"),
    ("huggingface_clip", lambda c: c.update(model_type="bert"),
     "of type 'bert'; of Hugging Face's, read are 'clip' and 'siglip'"),
    ("huggingface_clip", lambda c: c["text_config"].update(hidden_act="swish"),
     "no activation 'swish' here; of Hugging Face's there are quick_gelu"),
    ("huggingface_siglip", lambda c: c["vision_config"].update(vision_use_head=False),
     "no pooling head"),
])
def test_what_is_not_read_is_said(name, change, message, tmp_path):
  with pytest.raises(UserError, match=message):
    read(described(name, tmp_path, change))


def test_a_config_that_is_cut_off_is_said(tmp_path):
  folder = described("huggingface_clip", tmp_path, lambda c: None)
  (folder / "config.json").write_text('{"model_type": ')
  with pytest.raises(UserError, match="config.json is not JSON: .* Download it again"):
    read(folder)


def test_configs_of_before_2023_mean_the_largest_number_by_end_token_2(tmp_path):
  folder = described("huggingface_clip", tmp_path,
                     lambda c: c["text_config"].update(eos_token_id=2))
  assert read(folder).model.text.end_token == 63


def test_a_tokenizer_that_did_not_come_is_missed_only_when_texts_are(tmp_path):
  embedder = loaded("open_clip_vit")
  with pytest.raises(UserError, match="needs the tokenizer of its vocabulary, and there is no"):
    embedder.encode_text(["a dog"])
  folder = described("huggingface_siglip", tmp_path, lambda c: None)
  (folder / "spiece.model").unlink()
  with pytest.raises(UserError, match="came without its tokenizer: .*no spiece.model"):
    read(folder).tokenizer(["a dog"])
  with pytest.raises(UserError, match="does not hold its tokenizer. Put its SentencePiece model"):
    loaded("big_vision_siglip").encode_text(["a dog"])


@pytest.mark.parametrize("change, message", [
    (lambda a: a.pop("params/t"), "not of big_vision's two towers: it has no t"),
    (lambda a: a.pop("params/img/Transformer/encoderblock/LayerNorm_0/scale"), "encoderblock_0"),
    (lambda a: a.update({"params/img/pos_embedding": np.ones((1, 8, 32))}), "8 positions"),
    (lambda a: a.update({"params/img/pos_embedding": np.array([None])}), "no .npz of plain arrays"),
])
def test_an_npz_of_something_else_is_said(change, message, tmp_path):
  arrays = dict(np.load(GOLDENS["big_vision_siglip"][0]))
  change(arrays)
  np.savez(tmp_path / "x.npz", **arrays)
  with pytest.raises(UserError, match=message):
    read(tmp_path / "x.npz")


def test_the_tokenizer_beside_an_npz_is_taken(tmp_path):
  shutil.copy(GOLDENS["big_vision_siglip"][0], tmp_path / "x.npz")
  shutil.copy(GOLDENS["huggingface_siglip"][0] / "spiece.model", tmp_path / "c4.model")
  tokens = read(tmp_path / "x.npz").tokenizer(["a dog"])
  assert tokens.shape == (1, 8) and (tokens[0, -3:] == 1).all()
