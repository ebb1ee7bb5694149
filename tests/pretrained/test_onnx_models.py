"""Exported ONNX models, run by ONNX Runtime, against the models themselves."""

import json

from flax import nnx
import jax
import numpy as np
import pytest

from clip_jax.config import build, call
from clip_jax.data.crops import Resize
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from clip_jax.model.two_towers import TwoTowers
from clip_jax.pretrained import onnx_models
from clip_jax.pretrained.model_bundle import ModelBundle
from clip_jax.pretrained.onnx_graph import broadcast_shapes
from clip_jax.towers.bag_of_tokens import BagOfTokens
from clip_jax.towers.concat import ConcatTowers
from clip_jax.towers.hog import Hog
from tiny import LENGTH, VOCABULARY, text_tower
from tiny_towers import IMAGE_TOWERS

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

TOWERS = {
  **IMAGE_TOWERS,
  "hog": call(Hog, image_size=16),
  "resnet-and-hog": call(ConcatTowers, towers=(IMAGE_TOWERS["resnet"], call(Hog, image_size=16))),
}
TEXTS = {
  "unmasked": text_tower(mask_padding=False),
  "masked": text_tower(),
  "causal": text_tower(causal=True),
  "bag": call(BagOfTokens, vocab_size=VOCABULARY, context_length=LENGTH, width=32),
}


def bundle(image, text, **changes):
  config = call(TwoTowers, image=image, text=text, embed_dim=16, **changes)
  model = build(config, rngs=nnx.Rngs(1))
  _, params, stats = split_state(model)
  return model, ModelBundle(config, params, stats, 10.0, -1.0, Resize(16), None)


def check(model, saved, name, x):
  proto = onnx_models.encoder(saved, name).SerializeToString()
  session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
  entry, method = onnx_models.ENTRIES[name], getattr(model, name)
  for n in (1, 3):
    (found,) = session.run(["embedding"], {entry: x[:n]})
    wanted = np.asarray(method(x[:n]))
    assert found.dtype == np.float32 and found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def some(names, default):
  return [pytest.param(name, marks=[pytest.mark.slow] * (name not in default)) for name in names]


@pytest.mark.parametrize("name", some(TOWERS, ("vit-map", "clip-resnet", "swin", "hog")))
def test_image_towers(name):
  model, saved = bundle(TOWERS[name], text_tower())
  image = np.random.default_rng(0).integers(0, 256, (3, *model.image.image_size, 3), np.uint8)
  check(model, saved, "encode_image", image)


@pytest.mark.parametrize("name", some(TEXTS, ("masked", "bag")))
def test_text_towers(name):
  model, saved = bundle(IMAGE_TOWERS["mixer"], TEXTS[name], image_projection="mlp")
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, VOCABULARY, (3, LENGTH)).astype(np.int32)
  tokens[1, 4:] = 0
  check(model, saved, "encode_text", tokens)


def test_a_model_that_computes_in_bfloat16_is_exported_in_float32():
  tower = IMAGE_TOWERS["vit-gap"].copy_and_resolve_references()
  tower.dtype = "bfloat16"
  model, saved = bundle(IMAGE_TOWERS["vit-gap"], text_tower())
  config = saved.model.copy_and_resolve_references()
  config.image = tower
  saved = ModelBundle(config, saved.params, saved.stats, 10.0, 0.0, saved.preprocess, None)
  image = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
  check(model, saved, "encode_image", image)


def test_the_command_writes_both_encoders_and_their_shapes(tmp_path):
  _, saved = bundle(IMAGE_TOWERS["mixer"], TEXTS["bag"])
  onnx_models.write(saved, tmp_path)
  shapes = json.loads((tmp_path / "shapes.json").read_text())
  for method, sizes in (("encode_image", ["B", 16, 16, 3]), ("encode_text", ["B", LENGTH])):
    session = onnxruntime.InferenceSession(tmp_path / f"{method}.onnx")
    assert shapes[method]["shape"] == sizes == session.get_inputs()[0].shape
  assert (shapes["scale"], shapes["bias"]) == (10, -1)


def test_without_the_library_the_message_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "onnx", None)
  with pytest.raises(UserError, match="pip install"):
    onnx_models.write(bundle(IMAGE_TOWERS["mixer"], text_tower())[1], tmp_path)


def test_what_has_no_translation_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(
    TwoTowers,
    "encode_image",
    lambda self, image: jax.lax.cumsum(image.astype("float32"), 1)[:, 0, 0],
  )
  with pytest.raises(UserError, match="'cumsum', which cannot be written as ONNX"):
    onnx_models.write(bundle(IMAGE_TOWERS["mixer"], text_tower())[1], tmp_path)


def test_shapes_broadcast_as_in_numpy():
  for shapes in (((3, 1), (4,)), ((1, 5, 1), (3, 1, 2)), ((), (2, 3)), ((2,),)):
    assert broadcast_shapes(shapes) == np.broadcast_shapes(*shapes)
