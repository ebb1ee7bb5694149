"""Image processors of Hugging Face's library: preprocessor_config.json or processor_config.json."""

from collections.abc import Mapping
import math
from pathlib import Path
from typing import Any

from ml_collections.config_dict import ConfigDict

from clip_jax.cli import values
from clip_jax.config import call
from clip_jax.data.resize_then_crop import ResizeThenCrop
from clip_jax.errors import UserError
from clip_jax.pretrained import model_bundle
from clip_jax.pretrained.model_bundle import ModelBundle
from clip_jax.pretrained.open_clip import OPENAI_MEAN, OPENAI_STD

PREPROCESSING, PROCESSOR = "preprocessor_config.json", "processor_config.json"
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

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


def preprocessing(folder: Path, form: str, image: Mapping[str, Any]) -> dict[str, Any]:
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


def transform(settings: Mapping[str, Any], image_size: tuple[int, int]) -> ConfigDict:
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


def processor(saved: ModelBundle, form: str, model: ConfigDict) -> dict[str, Any]:
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
