"""Exports a model as two StableHLO programs with the weights inside, by `jax.export`."""

from pathlib import Path

from flax import nnx
import jax
from jax import export
import jax.numpy as jnp

from clip_jax.files import write_atomically
from clip_jax.model.learner import split_state
from clip_jax.nn.target import any_platform
from clip_jax.pretrained import model_bundle, saved_tokenizers
from clip_jax.pretrained.model_bundle import ModelBundle, abstract_model

PLATFORMS = ("cpu", "cuda", "tpu")
SHAPES = "shapes.json"


def write(saved: ModelBundle, folder: Path) -> None:
  """Writes encode_image.stablehlo, encode_text.stablehlo, shapes.json and the tokenizer.

  `jax.export.deserialize(bytearray(bytes)).call(x)` runs a program, where `bytes` is the content of
  its file and x is uint8 [B, H, W, 3] or int32 [B, L], for any B. It returns unit vectors, float32
  [B, E]. The programs normalise pixels, but do not resize images or tokenize texts. They run on
  every platform in `PLATFORMS`.
  """
  with any_platform():
    _write(saved, folder)


def _write(saved, folder):
  model = nnx.merge(split_state(abstract_model(saved.model))[0], saved.params, saved.stats)
  height, width = model.image.image_size
  folder.mkdir(parents=True, exist_ok=True)
  shapes = {}
  for name, shape, dtype in (
    ("encode_image", f"B, {height}, {width}, 3", jnp.uint8),
    ("encode_text", f"B, {model.text.context_length}", jnp.int32),
  ):
    arguments = jax.ShapeDtypeStruct(export.symbolic_shape(shape), dtype)
    exported = export.export(jax.jit(getattr(model, name)), platforms=PLATFORMS)(arguments)
    write_atomically(folder / f"{name}.stablehlo", bytes(exported.serialize()))
    shapes[name] = {
      side: {"shape": [d if isinstance(d, int) else str(d) for d in x.shape], "dtype": x.dtype.name}
      for side, x in (("input", arguments), ("output", exported.out_avals[0]))
    }
  model_bundle.save_json(
    folder / SHAPES,
    {
      **shapes,
      "scale": saved.scale,
      "bias": saved.bias,
      "platforms": PLATFORMS,
      "pixels": "RGB, 0 to 255; the program normalises them",
      "preprocess": model_bundle.preprocessing(saved),
    },
  )
  saved_tokenizers.write(saved.tokenizer, folder)
