"""Forms of the same checkpoint that libraries write: each is read as that library reads it."""

import io
import json
import shutil

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax.errors import UserError
from clip_jax.inference.loading import load_bundle
from golden_checkpoints import GOLDENS, encode_inputs, load_golden, normalise, reference_outputs

CLIP = GOLDENS["huggingface_clip"][0]


def edited(folder, file, change):
  """Applies a change to a JSON file of a checkpoint."""
  path = folder / file
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


@pytest.fixture
def copy(tmp_path):
  """A copy of Hugging Face's CLIPModel, to be changed."""
  shutil.copytree(CLIP, tmp_path / "model")
  return tmp_path / "model"


def processor(copy, **changes):
  edited(copy, "preprocessor_config.json", lambda x: x.update(changes))


def assert_same_outputs(folder):
  """The outputs are those that Hugging Face's library gave for the original."""
  expected = reference_outputs("huggingface_clip")
  z_image, z_text = encode_inputs(clip_jax.load(folder), "huggingface_clip")
  np.testing.assert_allclose(z_image, normalise(expected["z_image"]), atol=1e-4)
  np.testing.assert_allclose(z_text, normalise(expected["z_text"]), atol=1e-4)


def test_wrappers_prefixes_and_buffers_are_dropped_by_name(copy):
  arrays = load_file(copy / "model.safetensors")
  arrays["text_model.embeddings.position_ids"] = np.arange(8)[None]
  wrapped = {f"module._orig_mod.{name}": x for name, x in arrays.items()}
  save_file(wrapped, copy / "model.safetensors")
  assert_same_outputs(copy)


def test_the_end_token_2_means_the_largest_id_also_in_a_padded_vocabulary(copy):
  """The largest id of each golden text is its end token, 63."""
  name = "text_model.embeddings.token_embedding.weight"
  arrays = load_file(copy / "model.safetensors")
  arrays[name] = np.concatenate([arrays[name], np.zeros((6, 32), np.float32)])
  save_file(arrays, copy / "model.safetensors")
  text = {"vocab_size": 70, "eos_token_id": 2}
  edited(copy, "config.json", lambda x: x["text_config"].update(text))
  assert_same_outputs(copy)


def test_a_second_text_section_replaces_the_first(copy):
  def change(config):
    config["text_config_dict"] = config["text_config"]
    config["text_config"] = {"num_hidden_layers": 7}

  edited(copy, "config.json", change)
  assert load_bundle(copy).model.text.depth == 2


def test_the_processor_of_transformers_5_is_read(copy):
  processor(copy, resample=2, image_mean=[0.1, 0.2, 0.3])
  old = json.loads((copy / "preprocessor_config.json").read_text())
  (copy / "processor_config.json").write_text(json.dumps({"image_processor": old}))
  (copy / "preprocessor_config.json").unlink()
  found = load_bundle(copy)
  assert found.preprocess.interpolation == "bilinear"
  assert tuple(found.model.mean) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
  "changes, expected",
  [
    (dict(do_normalize=False), lambda x: x / 255),
    (dict(do_rescale=False), lambda x: (x - 0.5) / 0.25),
    (dict(rescale_factor=1 / 127.5), lambda x: (x / 127.5 - 0.5) / 0.25),
  ],
)
def test_steps_that_are_switched_off_are_not_done(copy, changes, expected):
  processor(copy, image_mean=[0.5] * 3, image_std=[0.25] * 3, **changes)
  x = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 3)).astype(np.uint8)
  model = clip_jax.load(copy).model
  np.testing.assert_allclose(
    model.normalise_pixels(jnp.asarray(x)), expected(x.astype(np.float32)), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(do_resize=False), "do_resize=false, which does not make images of the model's size"),
    (dict(crop_size={"height": 48, "width": 48}), "crop_size={'height': 48"),
    (dict(do_center_crop=False), "size={'shortest_edge': 32} without a crop"),
    (dict(do_center_crop=False, size={"height": 40, "width": 40}), "size={'height': 40"),
  ],
)
def test_images_of_another_size_than_the_models_are_refused(copy, changes, message):
  processor(copy, **changes)
  with pytest.raises(UserError, match=message):
    load_bundle(copy)


def test_shards_that_are_missing_or_not_listed_are_named(copy):
  index = copy / "model.safetensors.index.json"
  index.write_text("{}")
  with pytest.raises(UserError, match="index.json has no weight_map"):
    load_bundle(copy)
  index.write_text(json.dumps({"weight_map": {"logit_scale": "model-2-of-2.safetensors"}}))
  with pytest.raises(UserError, match="lists 'model-2-of-2.safetensors', which is not a file"):
    load_bundle(copy)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "hidden_act", "vocab_size"])
def test_fields_that_are_null_are_named(copy, field):
  edited(copy, "config.json", lambda x: x["text_config"].update({field: None}))
  with pytest.raises(UserError, match=f"text_config: {field} is None"):
    load_bundle(copy)


def test_big_visions_text_pools_are_chosen_and_not_guessed_silently(caplog):
  where = GOLDENS["big_vision_lit"][0]
  tokens = reference_outputs("big_vision_lit")["tokens"]
  last = clip_jax.load(where)
  assert "does not say how texts are pooled" in caplog.text
  caplog.clear()
  text = last.model.text
  x = text.embedding[...][tokens] + text.positions[...]
  hidden = np.asarray(text.norm(text.stack(x, None)))  # [B, L, D]
  for pool, expected in (("last", hidden[:, -1]), ("mean", hidden.mean(1)), ("max", hidden.max(1))):
    found = clip_jax.load(where, text_pool=pool).model.text(tokens)
    np.testing.assert_allclose(found, expected, atol=1e-5)
  assert not caplog.text
  with pytest.raises(UserError, match="text_pool='first' is not one of 'last', 'mean'"):
    clip_jax.load(where, text_pool="first")
  with pytest.raises(UserError, match="is for a .npz of big_vision"):
    clip_jax.load(CLIP, text_pool="mean")


def test_pictures_are_taken_in_all_their_forms(tmp_path):
  model, path = load_golden("huggingface_clip"), tmp_path / "a.png"
  pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
  picture = Image.fromarray(pixels)
  picture.save(path)
  data = path.read_bytes()
  expected = model.encode_image([pixels])
  with open(path, "rb") as file:
    forms = [path, str(path), data, memoryview(data), io.BytesIO(data), file, picture, pixels]
    forms += [pixels[None], jnp.asarray(pixels), iter([pixels]), (str(path),)]
    for form in forms:
      np.testing.assert_array_equal(model.encode_image(form), expected, err_msg=type(form))


@pytest.mark.parametrize(
  "images, message",
  [
    ("there_is_none.png", "picture there_is_none.png cannot be read"),
    (3, "cannot take a int, 3. It takes paths"),
    ([None], "cannot take a NoneType"),
    (np.zeros((2, 8, 8, 3), np.float32), r"cannot take an array float32 \[8, 8, 3\]"),
    (np.zeros((8, 8), np.uint8), r"cannot take an array uint8 \[8, 8\]"),
    ([], "nothing to encode"),
  ],
)
def test_what_is_not_a_picture_is_named(images, message):
  with pytest.raises(UserError, match=message):
    load_golden("huggingface_clip").encode_image(images)
