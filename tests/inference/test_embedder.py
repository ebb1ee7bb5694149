"""Encoding images and texts as unit vectors."""

import io

import jax
import numpy as np
from PIL import Image
import pytest

import clip_jax
from clip_jax.data.crops import Resize
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.errors import UserError
from clip_jax.inference.embedder import Embedder
from clip_jax.parallel.mesh import make_mesh
from clip_jax.training import evaluations, loop as loop_lib
from clip_jax.training.checkpoint import Checkpoints
from clip_jax.training.setup import build_setup
from run_config import get_config
from tiny import SIZE, learner, text_tower


def pictures(n):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (n, SIZE, SIZE, 3)).astype(np.uint8)


def embedder(devices=8, batch_size=16):
  model = learner(text=text_tower(vocab_size=4096)).model
  return Embedder(
    model,
    Resize(SIZE),
    SentencePiece(context_length=8),
    batch_size=batch_size,
    mesh=make_mesh(devices=jax.devices()[:devices]),
  )


@pytest.mark.parametrize("n", [1, 7, 16, 21])
def test_any_number_of_images_is_encoded(n):
  made = embedder()
  z = made.encode_image(pictures(n))
  assert z.shape == (n, 16) and z.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(z, np.asarray(made.model.encode_image(pictures(n))), atol=1e-5)


def test_eight_devices_give_the_same_result_as_one():
  texts = ["a dog", "two cats", "a very long sentence about nothing in particular at all"]
  np.testing.assert_allclose(
    embedder(8).encode_text(texts), embedder(1).encode_text(texts), atol=1e-6
  )


@pytest.mark.parametrize("devices, n", [(1, 5), (8, 5), (8, 16)])
def test_encode_share_gives_features_and_unit_vectors(devices, n):
  made = embedder(devices)
  features, z = made.encode_share(pictures(n))
  np.testing.assert_allclose(z, made.encode_image(pictures(n)), atol=1e-6)
  np.testing.assert_allclose(
    features, np.asarray(made.model.image_features(pictures(n))), atol=1e-5
  )


def test_images_may_be_pixels_pil_images_or_encoded_bytes():
  pixels = pictures(3)
  encoded = []
  for x in pixels:
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "PNG")
    encoded.append(buffer.getvalue())
  made = embedder()
  z = made.encode_image(pixels)
  np.testing.assert_allclose(made.encode_image([Image.fromarray(x) for x in pixels]), z, atol=1e-6)
  np.testing.assert_allclose(made.encode_image(encoded), z, atol=1e-6)


def test_a_single_text_and_an_empty_list_are_errors():
  with pytest.raises(UserError, match=r"a list of texts: use encode_text\(\['a dog'\]\)"):
    embedder().encode_text("a dog")
  with pytest.raises(UserError, match="nothing to encode"):
    embedder().encode_image([])


def test_similarity_is_the_cosine_of_every_pair():
  made, texts = embedder(), ["a dog", "two cats"]
  cosines = made.similarity(pictures(3), texts)
  z_image, z_text = made.encode_image(pictures(3)), made.encode_text(texts)
  wanted = [[float(np.dot(a, b)) for b in z_text] for a in z_image]
  np.testing.assert_allclose(cosines, wanted, atol=1e-6)


def test_classify_gives_the_softmax_over_mean_prompt_embeddings():
  made = embedder()
  made.scale, made.bias = 20.0, -3.0
  labels, forms = ["dog", "cat {x}", "car"], ("a photo of a {}.", "a {} toy")
  z_image, logits = made.encode_image(pictures(2)), np.zeros((2, 3))
  for k, label in enumerate(labels):
    z = made.encode_text([f"a photo of a {label}.", f"a {label} toy"]).mean(0)
    logits[:, k] = 20 * z_image @ (z / np.linalg.norm(z)) - 3
  wanted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  given = made.classify(pictures(2), labels, templates=forms)
  assert given.dtype == np.float32
  np.testing.assert_allclose(given, wanted, rtol=1e-4)
  several = made.classify(pictures(2), labels, templates=forms, multi_label=True)
  np.testing.assert_allclose(several, 1 / (1 + np.exp(-logits)), rtol=1e-4)


def test_classify_refuses_invalid_labels_and_templates():
  with pytest.raises(UserError, match=r"classify\(images, \['dog', ...\]\)"):
    embedder().classify(pictures(1), "dog")
  with pytest.raises(UserError, match="where the class name goes"):
    embedder().classify(pictures(1), ["dog"], templates=["a photo"])
  with pytest.raises(UserError, match="nothing to encode"):
    embedder().classify(pictures(1), [])


def test_a_loaded_run_matches_the_trained_model(tmp_path):
  config = get_config("3")
  config.evaluators = {}
  loop_lib.run(config, tmp_path)
  loaded = clip_jax.load(tmp_path)
  setup = build_setup(config)
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  state = checkpoints.restore(setup.state)
  checkpoints.close()
  trained = evaluations.embedder(setup, state)
  texts = ["a dog", "flag of France"]
  np.testing.assert_array_equal(loaded.encode_text(texts), trained.encode_text(texts))
  images = [setup.data.source[i]["image"] for i in range(3)]
  np.testing.assert_array_equal(loaded.encode_image(images), trained.encode_image(images))
  assert 10 < loaded.scale < 20 and loaded.bias == 0


def test_a_folder_without_a_model_is_an_error(tmp_path):
  with pytest.raises(UserError, match="No model found in"):
    clip_jax.load(tmp_path)
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(UserError, match="has not saved a checkpoint yet"):
    clip_jax.load(tmp_path)


def test_the_package_exports_call_and_build():
  assert clip_jax.call and clip_jax.build
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    _ = clip_jax.lod
