"""open_clip's checkpoints: directories with open_clip_config.json and open_clip_model.safetensors.

Source: the layout of open_clip_torch 3.3 (Ilharco et al. 2021).
"""

from collections.abc import Mapping
import math
from pathlib import Path
import re
from typing import Annotated, Any

from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax.cli import values
from clip_jax.config import call
from clip_jax.data.checkpoint_tokenizer import CleanedTokenizer, MissingTokenizer, TokenizerJson
from clip_jax.data.crops import Resize
from clip_jax.data.resize_then_crop import ResizeThenCrop
from clip_jax.data.tokenizer import ClipBpe
from clip_jax.errors import UserError
from clip_jax.model.two_towers import TwoTowers
from clip_jax.pretrained import (
  model_bundle,
  name_table,
  safetensors_file,
  saved_tokenizers,
  timm_trunks,
)
from clip_jax.pretrained.model_bundle import (
  Description,
  ModelBundle,
  complete_spec,
  part_name,
  require,
  require_plain,
)
from clip_jax.pretrained.name_table import Name
from clip_jax.pretrained.open_clip_names import (
  BIAS,
  COCA,
  SCALARS,
  TRUNK,
  VIT,
  attention_pool_adapted,
  resnet_table,
  text_table,
)
from clip_jax.towers import clip_resnet, sizes
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# BatchNorm's step count, unused with a fixed momentum, and constants that older versions saved.
IGNORED = (
  "*num_batches_tracked",
  "*attn_mask",
  "*relative_position_index",
  "input_resolution",
  "context_length",
  "vocab_size",
)
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
# Type hints of the fields that are read.
_TOP: dict[str, Any] = dict(embed_dim=values.Width, quick_gelu=bool | None)
_TOWER: dict[str, Any] = dict(
  width=values.Width,
  mlp_ratio=Annotated[float, values.Range(0, 1024)],
  act_kwargs=Mapping[str, Any] | None,
  norm_kwargs=Mapping[str, Any] | None,
)
_VISION: dict[str, Any] = dict(
  **_TOWER,
  layers=values.Depth | values.Stages,
  patch_size=values.Pixels | None,
  image_size=values.ImageSize,
  head_width=values.Width,
  no_ln_pre=bool,
  ls_init_value=values.NonNegativeFloat | None,
  final_ln_after_pool=bool,
  attentional_pool=bool | str,
  attn_pooler_heads=values.Width,
  pool_type=str,
  timm_model_name=str | None,
  timm_pool=str | None,
  timm_proj=str | None,
  timm_proj_bias=bool,
)
_TEXT: dict[str, Any] = dict(
  **_TOWER,
  layers=values.Depth,
  heads=values.Width,
  vocab_size=values.PositiveInt,
  context_length=values.ContextLength,
  pool_type=str,
  eos_id=values.NonNegativeInt,
  no_causal_mask=bool,
  ls_init_value=values.NonNegativeFloat | None,
  embed_cls=bool,
  proj_bias=bool,
  proj_type=str | None,
  hf_tokenizer_name=str | None,
  tokenizer_kwargs=Mapping[str, Any] | None,
)
_PROCESSOR: dict[str, Any] = dict(
  mean=tuple[float, float, float],
  std=tuple[values.PositiveFloat, values.PositiveFloat, values.PositiveFloat],
  interpolation=str,
  resize_mode=str,
)
_CLEAN = {name: f"open_clip_{name}" for name in ("canonicalize", "lower", "whitespace")}

# Names of timm's SigLIP ViTs in open_clip's configs.
TIMM = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_(gap_)?(\d+)")
TIMM_SIZES = {"base": "B", "large": "L", "so400m": "So400m", "giantopt": "g-opt"}
TIMM_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
# (patch, image size) of the ViTs that timm added for SigLIP 2, which use the tanh GELU; the older
# ones, in TIMM_EXACT, use the exact GELU.
TIMM_TANH = {
  "base": {(32, 256)},
  "large": {(16, 512)},
  "so400m": {(16, 256), (16, 384), (16, 512)},
  "giantopt": {(16, 256), (16, 384)},
}
TIMM_EXACT = {
  "base": {(16, 224), (16, 256), (16, 384), (16, 512)},
  "large": {(16, 256), (16, 384)},
  "so400m": {(14, 224), (14, 378), (14, 384)},
  "giantopt": set(),
}


def table(
  model: ConfigDict, *, biased: bool, custom: bool, image: list[Name] | None = None
) -> list[Name]:
  """Returns the name table of a model.

  Args:
    model: the complete call of `TwoTowers`.
    biased: whether the checkpoint has a logit bias.
    custom: whether it is a CustomTextCLIP, where text tower names start with "text.".
    image: the rows of the image tower and its projection, for timm's models other than SigLIP's.
  """
  trunk = part_name(model.image) == "Vit" and not model.image.class_position
  if image is None:
    image = (
      resnet_table(_numbers(model.image)[0])
      if part_name(model.image) == "ClipResnet"
      else TRUNK
      if trunk
      else COCA
      if model.image.pool == "attn"
      else VIT
    )
  affine = model.text_projection == "affine"
  return [*image, *text_table("text." if custom else "", affine=affine), *SCALARS, *(BIAS * biased)]


def _numbers(image):
  """Returns (stages, width, image size) of a ClipResnet call."""
  return tuple(
    n if given is None else given
    for given, n in zip(
      (image.stages, image.width, image.image_size), clip_resnet.SIZES[image.size]
    )
  )


def describe(folder: Path) -> Description:
  """Describes the model in a directory; the errors are those of `read`."""
  return _opened(folder)[0]


def read(folder: Path) -> ModelBundle:
  """Reads a model from a directory that open_clip wrote or that was downloaded from the hub.

  Raises:
    UserError: the weights are missing or do not match the config, or the config has a setting that
      is not supported.
  """
  description, names, arrays = _opened(folder)
  return model_bundle.read(description, names, arrays, str(folder / WEIGHTS), ignored=IGNORED)


def _opened(folder):
  """Returns the description of a model, its name table, and the arrays of its file."""
  config = model_bundle.load_json(folder / CONFIG)
  described = config.get("model_cfg")
  if described is None:
    raise UserError(f"{folder / CONFIG} has no model_cfg, so it is not an open_clip config.")
  _check(config, str(folder / CONFIG))
  arrays = name_table.without_wrappers(safetensors_file.read(folder / WEIGHTS))
  settings = {
    "mean": OPENAI_MEAN,
    "std": OPENAI_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    **(config.get("preprocess_cfg") or {}),
  }
  model, names, arrays = understood(described, arrays, settings, str(folder / CONFIG))
  interpolation = settings["interpolation"]
  biased = "logit_bias" in arrays
  description = Description(
    model,
    call(
      ResizeThenCrop,
      size=model.image.image_size,
      resize_mode=settings["resize_mode"],
      interpolation="bicubic" if interpolation == "random" else interpolation,
    ),
    _tokenizer(described["text_cfg"], folder),
    biased,
    "bicubic",
  )
  return description, names, arrays


def understood(
  described: Mapping[str, Any], arrays: dict[str, np.ndarray], settings: Mapping, where: str
) -> tuple[ConfigDict, list[Name], dict[str, np.ndarray]]:
  """Returns the call of the model that a model_cfg describes, its name table, and its arrays.

  The arrays are those that are read: without a text decoder, for example.

  Args:
    described: a model_cfg.
    arrays: the arrays of the checkpoint, by name.
    settings: preprocess_cfg with "mean" and "std".
    where: for error messages.

  Raises:
    UserError: the config has a setting that is not supported.
  """
  if "multimodal_cfg" in described:
    arrays = attention_pool_adapted(arrays, 1e-5)
  arrays = timm_trunks.adapted(arrays)
  model = _model(described, arrays, settings, where)
  name = described["vision_cfg"].get("timm_model_name")
  names = table(
    complete_spec(model),
    biased="logit_bias" in arrays,
    custom="text.positional_embedding" in arrays,
    image=timm_trunks.names(name, arrays) if name and not TIMM.fullmatch(name) else None,
  )
  return model, names, arrays


def _check(config, where):
  """Raises `UserError` if a field is missing or malformed."""
  model = config["model_cfg"]
  values.check_fields(model, _TOP, f"{where}, model_cfg")
  for name in ("embed_dim", "vision_cfg", "text_cfg"):
    if name not in model:
      raise UserError(f"{where}: model_cfg has no {name}.")
  values.check_fields(model["vision_cfg"], _VISION, f"{where}, vision_cfg")
  values.check_fields(model["text_cfg"], _TEXT, f"{where}, text_cfg")
  values.check_fields(config.get("preprocess_cfg") or {}, _PROCESSOR, f"{where}, preprocess_cfg")
  for name in ("vision_cfg", "text_cfg"):
    norm = model[name].get("norm_kwargs") or {}
    values.check_fields(norm, {"eps": values.PositiveFloat}, f"{where}, {name}.norm_kwargs")
  options = model["text_cfg"].get("tokenizer_kwargs") or {}
  values.check_fields(
    options, {"clean": str | None, "strip_sep_token": bool}, f"{where}, text_cfg.tokenizer_kwargs"
  )


def _model(config, arrays, settings, where):
  """Returns the call of the model that a model_cfg describes."""
  image, text_config = dict(config["vision_cfg"]), dict(config["text_cfg"])
  quick = "quick_gelu" if config.get("quick_gelu") else "gelu"
  text_projection = "affine" if text_config.pop("proj_bias", False) else "linear"
  if text_config.get("proj_type") == "none":
    text_projection = text_config.pop("proj_type")
  vision = (
    _timm
    if image.get("timm_model_name")
    else (_resnet if isinstance(image.get("layers"), (list, tuple)) else _vit)
  )
  spec, projection, *hidden = vision(image, arrays, quick, where)
  return call(
    TwoTowers,
    image=spec,
    text=_text(text_config, quick, where),
    embed_dim=config["embed_dim"],
    image_projection=projection,
    text_projection=text_projection,
    **({"projection_hidden_dim": hidden[0]} if hidden and hidden[0] else {}),
    mean=tuple(settings["mean"]),
    std=tuple(settings["std"]),
  )


def _rest(config, section, where, harmless=()):
  """Raises `UserError` if any setting of a section has not been consumed and is not harmless."""
  asked = {name: value for name, value in config.items() if value and name not in harmless}
  if asked:
    raise UserError(
      f"{where}: {section} has {values.shorten(asked)}, which clip_jax does not support. It reads "
      f"open_clip's own ViTs, ResNets and text transformers; {timm_trunks.KNOWN}."
    )


def _size(size):
  return size if isinstance(size, int) else tuple(size)


def _activation(config, quick):
  tanh = (config.pop("act_kwargs", None) or {}).get("approximate") == "tanh"
  return "gelu_tanh" if tanh else quick


def _epsilon(config):
  return (config.pop("norm_kwargs", None) or {}).get("eps", 1e-5)


def _vit(config, arrays, quick, where):
  width, patch_size = config.pop("width", 768), config.pop("patch_size", 16)
  pool = {"tok": "tok", "avg": "gap"}.get(config.get("pool_type", "tok"))
  options: dict[str, Any] = {}
  if pool:
    config.pop("pool_type", None)
  if pool == "gap":
    options["class_token"] = True
    options["norm_after_pool"] = bool(config.pop("final_ln_after_pool", False))
  if config.get("attentional_pool") is True:
    config.pop("attentional_pool")
    proj = arrays.get("visual.proj")
    pool, options = "attn", {"class_token": True}
    options["pool_heads"] = config.pop("attn_pooler_heads", 8)
    options["pool_width"] = width if proj is None else proj.shape[0]
  spec = call(
    Vit,
    patch=patch_size,
    image_size=_size(config.pop("image_size", 224)),
    pool=pool or "tok",
    class_position=True,
    **options,
    layer_scale=config.pop("ls_init_value", None),
    pre_norm=not config.pop("no_ln_pre", False),
    patch_bias=False,
    norm_eps=_epsilon(config),
    width=width,
    depth=config.pop("layers", 12),
    mlp_dim=int(width * config.pop("mlp_ratio", 4.0)),
    num_heads=width // config.pop("head_width", 64),
    activation=_activation(config, quick),
    dtype="float32",
  )
  # When a single token is pooled, it makes no difference whether the norm comes before or after.
  _rest(
    config,
    "vision_cfg",
    where,
    (
      "patch_dropout",
      "output_tokens",
      "final_ln_after_pool",
      "attn_pooler_queries",
      "attn_pooler_heads",
      "timm_pool",
      "timm_proj",
      "pos_embed_type",
    ),
  )
  return spec, "linear"


def _resnet(config, arrays, quick, where):
  del arrays, quick
  width = config.pop("width", 64)
  spec = call(
    clip_resnet.ClipResnet,
    stages=tuple(config.pop("layers")),
    width=width,
    num_heads=width * 32 // config.pop("head_width", 64),
    image_size=_size(config.pop("image_size", 224)),
    dtype="float32",
  )
  _rest(config, "vision_cfg", where, ("patch_size", "mlp_ratio"))
  return spec, "affine"


def _timm(config, arrays, quick, where):
  del quick
  name = config.pop("timm_model_name")
  found = TIMM.fullmatch(name)
  if not found:
    side, pool = config.pop("image_size", None), config.pop("timm_pool", "avg")
    spec = timm_trunks.image_tower(name, side and _size(side), pool, arrays, where)
    projection, hidden = timm_trunks.projection(arrays, config)
    _rest(config, "vision_cfg", where, _TIMM_HARMLESS)
    return spec, projection, hidden
  size, patch_size, gap, side = found[1], int(found[2]), bool(found[3]), int(found[4])
  pool, projection = config.pop("timm_pool", "avg"), config.pop("timm_proj", "linear")
  if (pool, projection) not in (
    ("map", "none"),
    ("map", "linear"),
    ("avg", "none"),
    ("avg", "linear"),
  ) or gap != (pool == "avg"):
    config.update(timm_pool=pool, timm_proj=projection)
  affine = config.pop("timm_proj_bias", False)
  side = config.pop("image_size", side)
  trunk = "visual.trunk."
  shape = lambda name, axis: arrays[trunk + name].shape[axis] if trunk + name in arrays else 0
  depth = sum(key.startswith(f"{trunk}blocks.") and key.endswith("norm1.weight") for key in arrays)
  spec = call(
    Vit,
    patch=patch_size,
    image_size=_size(side),
    pool="gap" if gap else "map",
    width=shape("pos_embed", -1) or 768,
    depth=depth or 12,
    mlp_dim=shape("blocks.0.mlp.fc1.weight", 0) or 3072,
    num_heads=TIMM_HEADS[size],
    activation=_timm_activation(size, patch_size, int(found[4])),
    dtype="float32",
    drop_rest=bool(np.any(np.mod(side, patch_size))),
  )
  _rest(config, "vision_cfg", where, _TIMM_HARMLESS)
  return spec, "none" if projection == "none" else "affine" if affine else "linear"


_TIMM_HARMLESS = ("timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_dropout")


def _timm_activation(size, patch_size, side):
  return "gelu_tanh" if (patch_size, side) in TIMM_TANH[size] else "gelu"


def _text(config, quick, where):
  vocabulary, width = config.pop("vocab_size", 49_408), config.pop("width", 512)
  pool, end = config.pop("pool_type", "argmax"), config.pop("eos_id", 2)
  if pool not in ("argmax", "eos", "last"):
    config["pool_type"] = pool
  if config.pop("embed_cls", False):
    pool = "cls"
  if config.get("proj_type") == "linear":
    del config["proj_type"]
  known = ("last", "argmax", "eot", "cls")
  pool = {"eos": "eot"}.get(pool, pool)
  spec = call(
    TextTransformer,
    vocab_size=vocabulary,
    context_length=config.pop("context_length", 77),
    causal=not config.pop("no_causal_mask", False),
    layer_scale=config.pop("ls_init_value", None),
    pool=pool if pool in known else "last",  # Otherwise `_rest` raises an error.
    eos_id=end if pool == "eot" else None,
    mask_padding=False,
    norm_eps=_epsilon(config),
    width=width,
    depth=config.pop("layers", 12),
    num_heads=config.pop("heads", 8),
    mlp_dim=int(width * config.pop("mlp_ratio", 4.0)),
    activation=_activation(config, quick),
    dtype="float32",
  )
  _rest(
    config,
    "text_cfg",
    where,
    (
      "hf_tokenizer_name",
      "tokenizer_kwargs",
      "pad_id",
      "output_tokens",
      "final_ln_after_pool",
      "hf_model_pretrained",
      "hf_proj_type",
      "hf_pooler_type",
    ),
  )
  return spec


def _tokenizer(config, folder):
  """Returns the call of the tokenizer that a text_cfg describes, OpenAI's if it names none."""
  length, vocabulary = config.get("context_length", 77), config.get("vocab_size", 49_408)
  named = config.get("hf_tokenizer_name")
  options = config.get("tokenizer_kwargs") or {}
  own = saved_tokenizers.bundled_tokenizer(folder)
  if own or (not named and vocabulary == ClipBpe.vocab_size):
    return own or call(ClipBpe, context_length=length)
  file = folder / "tokenizer.json"
  if (
    file.is_file()
    and not config.get("tokenizer_mode")
    and set(options) <= {"clean", "strip_sep_token"}
  ):
    padding = saved_tokenizers.padding(folder, default=0)
    blank = None
    if options.get("strip_sep_token"):  # BERT's separator is 102, if the folder does not name it.
      blank = saved_tokenizers.special_token(folder, "sep_token", default=102)
    made = call(
      TokenizerJson,
      path=str(file.absolute()),
      context_length=length,
      padding=padding,
      blank=blank,
    )
    clean = _CLEAN.get(options.get("clean"), _CLEAN["whitespace"])
    return call(CleanedTokenizer, tokenizer=made, clean=clean)
  return call(
    MissingTokenizer,
    why=f"The checkpoint in {folder} needs the tokenizer {named or 'of its vocabulary'}, but there "
    f"is no {file.name} that can be read. Download it, for example with hf-hub:ORG/NAME.",
    context_length=length,
    vocab_size=vocabulary,
  )


def _tokenizer_options(tokenizer):
  """Returns the tokenizer settings of a text_cfg; OpenAI's tokenizer needs none."""
  if isinstance(tokenizer, ClipBpe):
    return {}
  clean = getattr(tokenizer, "clean", "whitespace").removeprefix("open_clip_")
  return {
    "hf_tokenizer_name": "tokenizer of this directory",
    "tokenizer_kwargs": {
      "clean": {"words": "canonicalize", "letters": "canonicalize"}.get(clean, clean)
    },
  }


def write(saved: ModelBundle, folder: Path) -> None:
  """Writes a directory that open_clip loads as "local-dir:FOLDER".

  Raises:
    UserError: open_clip has no equivalent of the model.
  """
  model = complete_spec(saved.model)
  for spec in (model.image, model.text):
    if part_name(spec) in ("Vit", "TextTransformer"):
      require_plain(spec, part_name(spec), "open_clip")
  vision, text_config = _vision_config(model), _text_config(model, saved.tokenizer)
  quick = [
    spec.activation == "quick_gelu"
    for spec in (model.image, model.text)
    if "activation" in spec and not (spec is model.image and "timm_model_name" in vision)
  ]
  if any(quick) != all(quick):
    raise UserError(
      "open_clip has one quick_gelu for both towers, but this model's activations "
      f"are {model.image.activation!r} and {model.text.activation!r}. " + model_bundle.EXPORTABLE
    )
  described = {"embed_dim": model.embed_dim, "vision_cfg": vision, "text_cfg": text_config}
  if any(quick):
    described["quick_gelu"] = True
  if "timm_model_name" in vision:
    described["custom_text"] = True
  if saved.bias:
    described["init_logit_bias"] = saved.bias
  arrays = model_bundle.written(
    saved, table(model, biased=bool(saved.bias), custom="custom_text" in described)
  )
  if part_name(model.image) == "ClipResnet" and model.image_projection == "linear":
    arrays["visual.attnpool.c_proj.bias"] = np.zeros(model.embed_dim, np.float32)
  for name in [name for name in arrays if name.endswith("running_mean")]:
    arrays[name.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
  folder.mkdir(parents=True, exist_ok=True)
  safetensors_file.write(folder / WEIGHTS, arrays)
  preprocess = saved.preprocess
  if isinstance(preprocess, Resize):
    mode = {"squash": "squash", "crop": "shortest", "pad": "longest"}[preprocess.resize_mode]
    settings = {"interpolation": "bicubic", "resize_mode": mode}
  else:
    settings = {"interpolation": preprocess.interpolation, "resize_mode": preprocess.resize_mode}
  model_bundle.save_json(
    folder / CONFIG,
    {"model_cfg": described, "preprocess_cfg": {"mean": model.mean, "std": model.std, **settings}},
  )
  saved_tokenizers.write(saved.tokenizer, folder)


def _ratio(mlp, width):
  """Returns the mlp_ratio for which int(width * ratio) == mlp despite rounding."""
  ratio = mlp / width
  return ratio if int(width * ratio) == mlp else math.nextafter(ratio, math.inf)


def _shape(spec):
  norm = {} if spec.norm_eps == 1e-5 else {"norm_kwargs": {"eps": spec.norm_eps}}
  tanh = {"act_kwargs": {"approximate": "tanh"}} if spec.activation == "gelu_tanh" else {}
  return {
    "layers": spec.depth,
    "width": spec.width,
    "mlp_ratio": _ratio(spec.mlp_dim, spec.width),
    **norm,
    **tanh,
  }


def _vision_config(model):
  """Returns the vision_cfg of a model."""
  image = model.image
  if part_name(image) == "ClipResnet":
    require(model, "the model", "open_clip's ModifiedResNet", image_projection=("affine", "linear"))
    stages, width, side = _numbers(image)
    if len(stages) != 4:
      raise UserError(
        "open_clip's ModifiedResNet has four stages, but this model has "
        f"{len(stages)}. {model_bundle.EXPORTABLE}"
      )
    heads = image.num_heads or max(1, width // 2)
    return {
      "layers": list(stages),
      "width": width,
      "head_width": width * 32 // heads,
      "image_size": side,
      "patch_size": None,
    }
  if part_name(image) != "Vit":
    raise UserError(f"open_clip has no equivalent of {part_name(image)}. {model_bundle.EXPORTABLE}")
  if image.pool != "tok":
    return _timm_config(model)
  require(
    image,
    "Vit",
    "open_clip's ViT",
    class_position=True,
    positions="learned",
    patch_bias=False,
    drop_rest=False,
  )
  require(model, "the model", "open_clip's ViT", image_projection="linear")
  return {
    "image_size": image.image_size,
    "patch_size": image.patch,
    "head_width": image.width // image.num_heads,
    "no_ln_pre": not image.pre_norm,
    **_shape(image),
  }


def _timm_config(model):
  image = model.image
  require(
    image,
    "Vit",
    "timm's SigLIP ViT",
    pool=("gap", "map"),
    positions="learned",
    patch_bias=True,
    pre_norm=False,
    norm_eps=1e-6,
  )
  shape = (image.width, image.depth, image.mlp_dim, image.num_heads)
  for size, ours in TIMM_SIZES.items():
    known = {"gelu": TIMM_EXACT, "gelu_tanh": TIMM_TANH}.get(image.activation, {}).get(size, ())
    if shape == sizes.SIZES[ours] and (image.patch, image.image_size) in known:
      gap = "gap_" if image.pool == "gap" else ""
      return {
        "timm_model_name": f"vit_{size}_patch{image.patch}_siglip_{gap}{image.image_size}",
        "timm_model_pretrained": False,
        "image_size": image.image_size,
        "timm_pool": "avg" if gap else "map",
        "timm_proj": "none" if model.image_projection == "none" else "linear",
        "timm_proj_bias": model.image_projection == "affine",
      }
  raise UserError(
    f'open_clip takes a ViT with pool="{image.pool}" from timm, which has none with width '
    f"{image.width}, depth {image.depth}, patch {image.patch}, {image.image_size} pixels and "
    f"activation {image.activation!r}. {model_bundle.EXPORTABLE}"
  )


def _text_config(model, tokenizer):
  """Returns the text_cfg of a model."""
  spec = model.text
  if part_name(spec) != "TextTransformer":
    raise UserError(f"open_clip has no equivalent of {part_name(spec)}. {model_bundle.EXPORTABLE}")
  there = "open_clip's text transformer"
  require(spec, "TextTransformer", there, positions="learned", pre_norm=False)
  require(spec, "TextTransformer", there, pool=("last", "eot", "argmax"))
  require(model, "the model", "open_clip", text_projection=("linear", "affine"))
  if not spec.causal:
    require(spec, "TextTransformer", "open_clip's text transformer", mask_padding=False)
  config = {
    "context_length": spec.context_length,
    "vocab_size": spec.vocab_size,
    "heads": spec.num_heads,
    "no_causal_mask": not spec.causal,
    "proj_bias": model.text_projection == "affine",
    **_shape(spec),
    **_tokenizer_options(tokenizer),
  }
  if spec.pool in ("last", "argmax"):
    return {**config, "pool_type": spec.pool}
  end = saved_tokenizers.end_token(spec, tokenizer, "open_clip")
  if end == spec.vocab_size - 1:
    return {**config, "pool_type": "argmax"}
  return {**config, "pool_type": "eos", "eos_id": end}
