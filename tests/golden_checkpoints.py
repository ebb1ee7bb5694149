"""Tiny checkpoints of other libraries, loaded once each, and the outputs of those libraries."""

import functools
from pathlib import Path

import jax
import numpy as np

import clip_jax

FOLDER = Path(__file__).parent / "golden"
# Name -> (path of the checkpoint, path of the original library's outputs).
GOLDENS = {
  **{
    name: (FOLDER / name, FOLDER / name / "outputs.npz")
    for name in (
      "open_clip_vit",
      "open_clip_quickgelu",
      "open_clip_resnet",
      "open_clip_siglip",
      "huggingface_clip",
      "huggingface_siglip",
    )
  },
  **{
    f"big_vision_{name}": (
      FOLDER / f"big_vision/{name}.npz",
      FOLDER / f"big_vision/{name}_outputs.npz",
    )
    for name in ("siglip", "lit")
  },
}
TEXTS = ["a dog", "Two cats, sleeping on a RED sofa!", "a_photo of x & y"]


@functools.cache
def load_golden(name):
  return clip_jax.load(GOLDENS[name][0])


@functools.cache
def reference_outputs(name):
  return dict(np.load(GOLDENS[name][1]))


def normalise(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def encode_inputs(embedder, name):
  """Encodes a golden's image and token inputs as unit vectors."""
  inputs = reference_outputs(name)
  encode = jax.jit(
    lambda model, image, tokens: (model.encode_image(image), model.encode_text(tokens))
  )
  return [np.asarray(z) for z in encode(embedder.model, inputs["image"], inputs["tokens"])]
