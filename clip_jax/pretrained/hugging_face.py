"""Hugging Face's CLIPModel and SiglipModel: directories with config.json, model.safetensors etc.

Source: the directory layout and the config defaults of transformers 5.23.
"""

from collections.abc import Mapping
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from clip_jax.cli import values
from clip_jax.config import call
from clip_jax.data.checkpoint_tokenizer import CleanedTokenizer, MissingTokenizer, TokenizerJson
from clip_jax.data.resize_then_crop import ResizeThenCrop
from clip_jax.data.tokenizer import ClipBpe, SentencePiece
from clip_jax.errors import UserError
from clip_jax.model.two_towers import TwoTowers
from clip_jax.pretrained import model_bundle, name_table, safetensors_file, saved_tokenizers
from clip_jax.pretrained.model_bundle import (
  Description,
  ModelBundle,
  complete_spec,
  part_name,
  require,
  require_plain,
)
from clip_jax.pretrained.name_table import (
  Name,
  layer_norm,
  linear,
  matrix,
  matrix_of_heads,
  of,
  patch,
  prefixed,
  vector,
)
from clip_jax.pretrained.open_clip import OPENAI_MEAN, OPENAI_STD
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PREPROCESSING, PROCESSOR = "preprocessor_config.json", "processor_config.json"
IGNORED = ("*.position_ids",)  # A constant buffer: 0, 1, 2, ...
ACTIVATIONS = {
  "quick_gelu": "quick_gelu",
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_python": "gelu",
}
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

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
_PROCESSOR: dict[str, Any] = dict(
  image_mean=tuple[float, float, float],
  image_std=tuple[values.PositiveFloat, values.PositiveFloat, values.PositiveFloat],
  resample=int | None,
  do_center_crop=bool | None,
  do_resize=bool | None,
  do_rescale=bool | None,
  do_normalize=bool | None,
  rescale_factor=values.PositiveFloat | None,
  crop_size=values.Pixels | Mapping[str, values.Pixels | None] | None,
  size=values.Pixels | Mapping[str, values.Pixels | None],
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

BLOCK = [
  *layer_norm("layer_norm1", "norm_attention"),
  *(
    row
    for i, name in enumerate("qkv")
    for row in linear(f"self_attn.{name}_proj", "attention/qkv", of(i, 1, matrix), of(i, 0, vector))
  ),
  *linear("self_attn.out_proj", "attention/out", matrix_of_heads),
  *layer_norm("layer_norm2", "norm_mlp"),
  *linear("mlp.fc1", "mlp/up"),
  *linear("mlp.fc2", "mlp/down"),
]
TOWERS = [
  Name("vision_model.embeddings.class_embedding", "image/class_token"),
  Name("vision_model.embeddings.patch_embedding.weight", "image/embedding/kernel", patch),
  Name("vision_model.embeddings.patch_embedding.bias", "image/embedding/bias"),
  Name("vision_model.embeddings.position_embedding.weight", "image/positions"),
  *layer_norm("vision_model.pre_layrnorm", "image/pre_norm"),
  *prefixed("vision_model.encoder.layers.{}.", "image/stack/blocks/", BLOCK),
  *layer_norm("vision_model.post_layernorm", "image/norm"),
  Name("text_model.embeddings.token_embedding.weight", "text/embedding"),
  Name("text_model.embeddings.position_embedding.weight", "text/positions"),
  *prefixed("text_model.encoder.layers.{}.", "text/stack/blocks/", BLOCK),
  *layer_norm("text_model.final_layer_norm", "text/norm"),
]
TABLES = {
  "clip": [
    *TOWERS,
    Name("visual_projection.weight", "image_projection/kernel", matrix),
    Name("text_projection.weight", "text_projection/kernel", matrix),
    Name("logit_scale", "log_scale"),
  ],
  "siglip": [
    *TOWERS,
    *prefixed(
      "vision_model.head.",
      "image/head/",
      [
        Name("probe", "probe", lambda x: x[None, None]),
        # One array with the queries first, then the keys and values.
        Name("attention.in_proj_weight", "query/kernel", matrix),
        Name("attention.in_proj_weight", "key_value/kernel", matrix),
        Name("attention.in_proj_bias", "query/bias", vector),
        Name("attention.in_proj_bias", "key_value/bias", vector),
        *linear("attention.out_proj", "out", matrix_of_heads),
        *layer_norm("layernorm", "norm"),
        *linear("mlp.fc1", "mlp/up"),
        *linear("mlp.fc2", "mlp/down"),
      ],
    ),
    *linear("text_model.head", "text_projection"),
    Name("logit_scale", "log_scale", lambda x: x[None]),
    Name("logit_bias", "bias", lambda x: x[None]),
  ],
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
  settings = _preprocessing(folder, form, image)
  model = (_clip if form == "clip" else _siglip)(config, image, text, settings)
  description = Description(
    model,
    _transform(settings, model.image.image_size),
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


def _preprocessing(folder, form, image):
  """Returns the settings of the image processor, completed with the usual values.

  They are in preprocessor_config.json, or from transformers 5 on in processor_config.json. The mean
  and the standard deviation include what is not done, or done with another factor.
  """
  side = image["image_size"]
  half = (0.5, 0.5, 0.5)
  usual = {
    "image_mean": OPENAI_MEAN if form == "clip" else half,
    "image_std": OPENAI_STD if form == "clip" else half,
    "resample": 3,
    "do_center_crop": form == "clip",
    "size": {"shortest_edge": side} if form == "clip" else {"height": side, "width": side},
  }
  file, given = folder / PREPROCESSING, {}
  if (folder / PROCESSOR).is_file():
    given = model_bundle.load_json(folder / PROCESSOR).get("image_processor") or {}
  if given:
    file = folder / PROCESSOR
  elif file.is_file():
    given = model_bundle.load_json(file)
  values.check_fields(given, _PROCESSOR, str(file))
  settings = {**usual, **{name: x for name, x in given.items() if x is not None}}
  _check_geometry(settings, side, str(file))
  if settings.get("do_normalize") is False:
    settings.update(image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
  # The model divides pixels by 255 before it normalises them.
  factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
  if not math.isclose(255 * factor, 1):
    for name in ("image_mean", "image_std"):
      settings[name] = tuple(x / (255 * factor) for x in settings[name])
  return settings


def _check_geometry(settings, side, where):
  """Raises `UserError` if images are resized or cropped to another size than the model's."""
  height, width = (side, side) if isinstance(side, int) else side
  form = lambda size: {"height": size, "width": size} if isinstance(size, int) else size
  size, crops = settings["size"], settings["do_center_crop"]
  crop = form(settings.get("crop_size") or {"height": height, "width": width})
  wrong = ""
  if settings.get("do_resize") is False:
    wrong = "do_resize=false"
  elif crops and (crop.get("height", height), crop.get("width", width)) != (height, width):
    wrong = f"crop_size={crop}"
  elif not isinstance(size, int) and not crops and size.get("shortest_edge"):
    wrong = f"size={size} without a crop"
  elif not isinstance(size, int) and not size.get("shortest_edge"):
    if (size.get("height"), size.get("width")) != (height, width):
      wrong = f"size={size}"
  elif isinstance(size, int) and not crops and (size, size) != (height, width):
    wrong = f"size={size}"
  if wrong:
    raise UserError(
      f"{where} has {wrong}, which does not make images of the model's size, {height} x {width}. "
      "Correct the file, or the image_size in config.json."
    )


def _transform(settings, image_size):
  """Returns the call of the transform in the settings; its output always has the model's size."""
  interpolation = INTERPOLATIONS.get(settings["resample"], "bicubic")
  size = settings["size"]
  shortest = size if isinstance(size, int) else size.get("shortest_edge")
  if settings["do_center_crop"] and shortest:
    kind, side = "shortest", shortest
  else:
    kind, side = "squash", None
  return call(
    ResizeThenCrop, size=image_size, resize_mode=kind, interpolation=interpolation, side=side
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
  model_bundle.save_json(folder / PREPROCESSING, _processor(saved, form, model))
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


def _processor(saved, form, model):
  """Returns the content of preprocessor_config.json."""
  made, size = saved.preprocess, saved.preprocess.size
  number = {name: i for i, name in INTERPOLATIONS.items()}[
    getattr(made, "interpolation", "bicubic")
  ]
  crops = made.resize_mode in ("shortest", "crop")
  shorter = getattr(made, "side", None) or min(size)
  return {
    "image_processor_type": f"{'CLIP' if form == 'clip' else 'Siglip'}ImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "rescale_factor": 1 / 255,
    "resample": number,
    "image_mean": model.mean,
    "image_std": model.std,
    "do_center_crop": crops,
    "size": {"shortest_edge": shorter} if crops else {"height": size[0], "width": size[1]},
    **({"crop_size": {"height": size[0], "width": size[1]}} if crops else {}),
  }
