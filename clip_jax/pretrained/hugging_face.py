"""Hugging Face's CLIPModel and SiglipModel: directories with config.json, model.safetensors etc.

Source: the directory layout and the config defaults of transformers 5.23.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from clip_jax.cli import values
from clip_jax.config import call
from clip_jax.data.checkpoint_tokenizer import CleanedTokenizer, MissingTokenizer, TokenizerJson
from clip_jax.data.tokenizer import ClipBpe, SentencePiece
from clip_jax.errors import UserError
from clip_jax.model.two_towers import TwoTowers
from clip_jax.pretrained import (
  hugging_face_images,
  model_bundle,
  name_table,
  safetensors_file,
  saved_tokenizers,
)
from clip_jax.pretrained.hugging_face_names import TABLES
from clip_jax.pretrained.model_bundle import (
  Description,
  ModelBundle,
  complete_spec,
  part_name,
  require,
  require_plain,
)
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
IGNORED = ("*.position_ids",)  # A constant buffer: 0, 1, 2, ...
ACTIVATIONS = {
  "quick_gelu": "quick_gelu",
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_python": "gelu",
}

# Type hints of the fields that are read.
_TOP: dict[str, Any] = {"model_type": str, "projection_dim": values.Width}
_TOWER: dict[str, Any] = dict(
  hidden_size=values.Width,
  intermediate_size=values.Width,
  num_hidden_layers=values.Depth,
  num_attention_heads=values.Width,
  hidden_act=str,
  layer_norm_eps=values.PositiveFloat,
)
_TEXT: dict[str, Any] = dict(
  **_TOWER,
  vocab_size=values.PositiveInt,
  max_position_embeddings=values.ContextLength,
  eos_token_id=int | Annotated[tuple[int, ...], values.Length(1)] | None,
  pad_token_id=int | None,
  projection_size=values.Width | None,
)
_VISION: dict[str, Any] = dict(
  **_TOWER, image_size=values.ImageSize, patch_size=values.Pixels, vision_use_head=bool
)
# Defaults of the fields that a config.json omits.
DEFAULTS = {
  "clip": {
    "text_config": dict(
      vocab_size=49_408,
      hidden_size=512,
      intermediate_size=2048,
      num_hidden_layers=12,
      num_attention_heads=8,
      max_position_embeddings=77,
      hidden_act="quick_gelu",
      layer_norm_eps=1e-5,
      eos_token_id=49_407,
    ),
    "vision_config": dict(
      hidden_size=768,
      intermediate_size=3072,
      num_hidden_layers=12,
      num_attention_heads=12,
      image_size=224,
      patch_size=32,
      hidden_act="quick_gelu",
      layer_norm_eps=1e-5,
    ),
  },
  "siglip": {
    "text_config": dict(
      vocab_size=32_000,
      hidden_size=768,
      intermediate_size=3072,
      num_hidden_layers=12,
      num_attention_heads=12,
      max_position_embeddings=64,
      hidden_act="gelu_pytorch_tanh",
      layer_norm_eps=1e-6,
      pad_token_id=1,
      projection_size=None,
    ),
    "vision_config": dict(
      hidden_size=768,
      intermediate_size=3072,
      num_hidden_layers=12,
      num_attention_heads=12,
      image_size=224,
      patch_size=16,
      hidden_act="gelu_pytorch_tanh",
      layer_norm_eps=1e-6,
      vision_use_head=True,
    ),
  },
}


def describe(folder: Path) -> Description:
  """Describes the model in a directory; the errors are those of `read`."""
  return _described(folder)[0]


def read(folder: Path) -> ModelBundle:
  """Reads a model from a directory written by CLIPModel or SiglipModel.

  Raises:
    UserError: the model is of another type, or the weights do not match the config.
  """
  description, form = _described(folder)
  where = folder / (INDEX if (folder / INDEX).is_file() else WEIGHTS)
  return model_bundle.read(description, TABLES[form], _arrays(where), str(where), ignored=IGNORED)


def _described(folder):
  """Returns the description of a model, and its form, "clip" or "siglip"."""
  config = model_bundle.load_json(folder / CONFIG)
  values.check_fields(config, _TOP, str(folder / CONFIG))
  form = config.get("model_type")
  if form not in TABLES:
    raise UserError(
      f"{folder / CONFIG} describes a model of type {form!r:.100}. The Hugging Face types "
      f"that can be read are {' and '.join(map(repr, TABLES))}."
    )
  text, image = (
    _section(config, name, hints, DEFAULTS[form][name], str(folder / CONFIG))
    for name, hints in (("text_config", _TEXT), ("vision_config", _VISION))
  )
  settings = hugging_face_images.preprocessing(folder, form, image)
  model = (_clip if form == "clip" else _siglip)(config, image, text, settings)
  description = Description(
    model,
    hugging_face_images.transform(settings, model.image.image_size),
    _tokenizer(folder, form, text),
    form == "siglip",
    "torch_bicubic",
  )
  return description, form


def _section(config, name, hints, defaults, where):
  """Returns a checked section of a config.json, completed with the defaults."""
  # Configs of 2022 may have a second section, which replaces the first in Hugging Face's library.
  section = f"{name}_dict" if config.get(f"{name}_dict") is not None else name
  given = config.get(section) or {}
  values.check_fields(given, hints, f"{where}, {section}")
  return {**defaults, **given}


def _arrays(where):
  """Returns the arrays of a .safetensors file, or of all files that an index lists."""
  if where.name != INDEX:
    return name_table.without_wrappers(safetensors_file.read(where))
  index = model_bundle.load_json(where)
  if not index.get("weight_map"):
    raise UserError(f"{where} has no weight_map, which lists the files. Download it again.")
  values.check_fields(index, {"weight_map": Mapping[str, str]}, str(where))
  arrays = {}
  for name in sorted(set(index["weight_map"].values())):
    if Path(name).name != name or not (where.parent / name).is_file():
      raise UserError(
        f"{where} lists {name!r}, which is not a file next to it. Download it too; all of the "
        "model's files must be in one folder."
      )
    arrays |= safetensors_file.read(where.parent / name)
  return name_table.without_wrappers(arrays)


def _shape(config):
  if config["hidden_act"] not in ACTIVATIONS:
    raise UserError(
      f"Unsupported activation {config['hidden_act']!r:.100}. The Hugging Face "
      f"activations that can be read are {', '.join(ACTIVATIONS)}."
    )
  return dict(
    width=config["hidden_size"],
    depth=config["num_hidden_layers"],
    mlp_dim=config["intermediate_size"],
    num_heads=config["num_attention_heads"],
    norm_eps=config["layer_norm_eps"],
    activation=ACTIVATIONS[config["hidden_act"]],
    dtype="float32",
  )


def _side(size):
  return size if isinstance(size, int) else tuple(size)


def _clip(config, image, text, settings):
  """Returns the call of the `TwoTowers` that a CLIPModel's config describes."""
  end, vocabulary = text["eos_token_id"], text["vocab_size"]
  end = end[0] if isinstance(end, list) else end
  return call(
    TwoTowers,
    image=call(
      Vit,
      patch=image["patch_size"],
      image_size=_side(image["image_size"]),
      pool="tok",
      class_position=True,
      pre_norm=True,
      patch_bias=False,
      **_shape(image),
    ),
    text=call(
      TextTransformer,
      vocab_size=vocabulary,
      context_length=text["max_position_embeddings"],
      causal=True,
      # Configs from before 2023 say 2 where they mean the largest id of the text.
      pool="argmax" if end == 2 else "eot",
      mask_padding=False,
      eos_id=None if end == 2 else end,
      **_shape(text),
    ),
    embed_dim=config.get("projection_dim", 512),
    mean=tuple(settings["image_mean"]),
    std=tuple(settings["image_std"]),
  )


def _siglip(config, image, text, settings):
  """Returns the call of the `TwoTowers` that a SiglipModel's config describes."""
  del config
  if not image["vision_use_head"]:
    raise UserError("Cannot read a SiglipModel without a pooling head (vision_use_head is false).")
  side, patch_size = _side(image["image_size"]), image["patch_size"]
  return call(
    TwoTowers,
    image=call(
      Vit,
      patch=patch_size,
      image_size=side,
      pool="map",
      drop_rest=bool(np.any(np.mod(side, patch_size))),
      **_shape(image),
    ),
    text=call(
      TextTransformer,
      vocab_size=text["vocab_size"],
      context_length=text["max_position_embeddings"],
      pool="last",
      mask_padding=False,
      **_shape(text),
    ),
    embed_dim=text["projection_size"] or text["hidden_size"],
    image_projection="none",
    text_projection="affine",
    mean=tuple(settings["image_mean"]),
    std=tuple(settings["image_std"]),
  )


def _tokenizer(folder, form, text):
  """Returns the call of the directory's tokenizer, or of OpenAI's for CLIP's vocabulary."""
  length, vocabulary = text["max_position_embeddings"], text["vocab_size"]
  own = saved_tokenizers.bundled_tokenizer(folder)
  if own:
    return own
  settings = saved_tokenizers.settings(folder)
  # SigLIP's tokenizer class cleans texts. SigLIP 2 was trained on lower-cased texts, but its
  # tokenizer.json does not lower-case them. Others leave everything to the tokenizer.json.
  clean = {"SiglipTokenizer": "letters", "Siglip2Tokenizer": "lower"}.get(
    settings.get("tokenizer_class"), "lower" if form == "siglip" else None
  )
  if (folder / "tokenizer.json").is_file():
    default = text.get("pad_token_id") or 0
    made = call(
      TokenizerJson,
      path=str((folder / "tokenizer.json").absolute()),
      context_length=length,
      padding=saved_tokenizers.padding(folder, default=default),
    )
    return call(CleanedTokenizer, tokenizer=made, clean=clean) if clean else made
  if form == "clip" and vocabulary == ClipBpe.vocab_size:
    return call(ClipBpe, context_length=length, fix_text=False)
  pieces = folder / saved_tokenizers.PIECES
  if pieces.is_file():
    made = call(SentencePiece, model=str(pieces.absolute()), context_length=length, sticky_eos=True)
    return call(CleanedTokenizer, tokenizer=made, clean=clean or "whitespace")
  return call(
    MissingTokenizer,
    why=f"The checkpoint in {folder} has no tokenizer: neither tokenizer.json nor "
    f"{saved_tokenizers.PIECES} is there. Download them too, for example with hf-hub:ORG/NAME.",
    context_length=length,
    vocab_size=vocabulary,
  )


def write(saved: ModelBundle, folder: Path) -> None:
  """Writes a directory that CLIPModel or SiglipModel loads with `from_pretrained(folder)`.

  Raises:
    UserError: neither class has an equivalent of the model.
  """
  model = complete_spec(saved.model)
  if (part_name(model.image), part_name(model.text)) != ("Vit", "TextTransformer"):
    raise UserError(
      f"Hugging Face's CLIPModel and SiglipModel have no equivalent of "
      f"{part_name(model.image)} with {part_name(model.text)}. {model_bundle.EXPORTABLE}"
    )
  for spec in (model.image, model.text):
    require_plain(spec, part_name(spec), "Hugging Face's library")
  require(
    model.text, "TextTransformer", "Hugging Face's library", positions="learned", pre_norm=False
  )
  form = "siglip" if model.image.pool == "map" else "clip"
  config = _clip_config(model, saved) if form == "clip" else _siglip_config(model)
  arrays = model_bundle.written(saved, TABLES[form])
  folder.mkdir(parents=True, exist_ok=True)
  safetensors_file.write(folder / WEIGHTS, arrays)
  model_bundle.save_json(folder / CONFIG, {"model_type": form, "dtype": "float32", **config})
  model_bundle.save_json(
    folder / hugging_face_images.PREPROCESSING, hugging_face_images.processor(saved, form, model)
  )
  saved_tokenizers.write(saved.tokenizer, folder)


def _config(spec):
  back = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  return dict(
    hidden_size=spec.width,
    intermediate_size=spec.mlp_dim,
    num_hidden_layers=spec.depth,
    num_attention_heads=spec.num_heads,
    hidden_act=back[spec.activation],
    layer_norm_eps=spec.norm_eps,
  )


def _clip_config(model, saved):
  image, text, there = model.image, model.text, "Hugging Face's CLIPModel"
  require(
    image,
    "Vit",
    there,
    pool="tok",
    class_position=True,
    pre_norm=True,
    patch_bias=False,
    positions="learned",
    drop_rest=False,
  )
  require(text, "TextTransformer", there, causal=True, pool=("eot", "argmax"))
  require(model, "the model", there, image_projection="linear", text_projection="linear")
  if saved.bias:
    raise UserError(
      f"{there} has no logit bias, but this model's is {saved.bias:.3g}. " + model_bundle.EXPORTABLE
    )
  # 2 has the meaning of "argmax" there.
  end = 2 if text.pool == "argmax" else saved_tokenizers.end_token(text, saved.tokenizer, there)
  return {
    "architectures": ["CLIPModel"],
    "projection_dim": model.embed_dim,
    "text_config": {
      **_config(text),
      **_vocabulary(text),
      "eos_token_id": end,
      "projection_dim": model.embed_dim,
    },
    "vision_config": {
      **_config(image),
      "image_size": image.image_size,
      "patch_size": image.patch,
      "projection_dim": model.embed_dim,
    },
  }


def _siglip_config(model):
  image, text, there = model.image, model.text, "Hugging Face's SiglipModel"
  require(image, "Vit", there, pre_norm=False, patch_bias=True, positions="learned")
  require(text, "TextTransformer", there, causal=False, pool="last", mask_padding=False)
  require(model, "the model", there, image_projection="none", text_projection="affine")
  return {
    "architectures": ["SiglipModel"],
    "text_config": {**_config(text), **_vocabulary(text), "projection_size": model.embed_dim},
    "vision_config": {**_config(image), "image_size": image.image_size, "patch_size": image.patch},
  }


def _vocabulary(text):
  return {"vocab_size": text.vocab_size, "max_position_embeddings": text.context_length}
