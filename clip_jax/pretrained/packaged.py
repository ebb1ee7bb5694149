"""This package's own models in a folder: a config, weights in float16 and the tokenizer's file.

Any model can be written so, whatever its towers. A run's workdir has what is needed to resume
training; this has what is needed to use the model, in half the space of its weights. The models
that come with the package are in this format.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax import config as config_lib
from clip_jax.cli import values
from clip_jax.config import build, call
from clip_jax.data.crops import Resize
from clip_jax.data.untrusted import MAX_JSON, read_json, read_regular
from clip_jax.errors import UserError
from clip_jax.files import write_atomically
from clip_jax.model.learner import split_state
from clip_jax.model.transfer import METHODS, check_same_arrays
from clip_jax.parallel.tree_paths import leaves_by_name, path_name
from clip_jax.pretrained import model_bundle, safetensors_file
from clip_jax.pretrained.model_bundle import Description, ModelBundle, abstract_model

CONFIG, WEIGHTS = "clip_jax_model.json", "clip_jax_model.safetensors"
SHIPPED = Path(__file__).parent / "shipped"
_FORMAT = 1
_ADVICE = "Export the model again."
# Type hints of the fields of the config.
_FIELDS: dict[str, Any] = dict(
  format=int,
  model=dict,
  preprocess=dict,
  tokenizer=dict,
  files=list,
  scale=float,
  bias=float,
  biased=bool,
  position_method=str,
)


def shipped() -> tuple[str, ...]:
  """Returns the names of the models that come with the package."""
  return tuple(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CONFIG}")))


def write(described: Description, saved: ModelBundle, folder: Path) -> None:
  """Writes a model to a folder: config, float16 weights, and files of the tokenizer.

  Raises:
    UserError: a weight is beyond the range of float16.
  """
  arrays = {}
  for name, x in _arrays(saved.params, saved.stats).items():
    x = np.asarray(x)
    with np.errstate(over="ignore"):
      half = x.astype(np.float16) if x.dtype == np.float32 else x
    if not np.isfinite(half.astype(np.float64)).all():
      raise UserError(
        f"{name} has values up to {np.abs(x).max():.3g}, which float16 cannot hold. Export to "
        "another format."
      )
    arrays[name] = half
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer, files = _with_files(described.tokenizer, folder)
  preprocess = described.preprocess
  if preprocess is None:  # That of a run whose views have none.
    preprocess = call(Resize, size=abstract_model(saved.model).image.image_size)
  content = {
    "format": _FORMAT,
    **{
      name: json.loads(config_lib.to_json(spec))
      for name, spec in (
        ("model", saved.model),
        ("preprocess", preprocess),
        ("tokenizer", tokenizer),
      )
    },
    "files": files,
    "scale": saved.scale,
    "bias": saved.bias,
    "biased": described.biased,
    "position_method": described.position_method,
  }
  safetensors_file.write(folder / WEIGHTS, arrays)
  model_bundle.save_json(folder / CONFIG, content)


def describe(folder: Path, trust: tuple[str, ...] = ()) -> Description:
  """Describes the model in a folder.

  Raises:
    UserError: the config is malformed, or calls something outside the package and `trust`.
  """
  content, spec = _content(folder, trust)
  return Description(
    spec.model,
    spec.preprocess,
    spec.tokenizer,
    content["biased"],
    content["position_method"],
  )


def read(folder: Path, trust: tuple[str, ...] = ()) -> ModelBundle:
  """Reads the model in a folder, with float32 weights.

  Raises:
    UserError: the config is malformed or calls something outside the package and `trust`, or the
      weights are damaged or belong to another model.
  """
  content, spec = _content(folder, trust)
  arrays = safetensors_file.read(folder / WEIGHTS)
  _, params, stats = split_state(abstract_model(spec.model))
  check_same_arrays(
    {name: x.shape for name, x in arrays.items()},
    {name: tuple(x.shape) for name, x in _arrays(params, stats).items()},
    str(folder),
    hint=_ADVICE,
  )
  fill = lambda part, tree: jax.tree_util.tree_map_with_path(
    lambda path, x: arrays[f"{part}/{path_name(path)}"].astype(x.dtype), tree
  )
  return ModelBundle(
    spec.model,
    fill("params", params),
    fill("stats", stats),
    content["scale"],
    content["bias"],
    build(spec.preprocess),
    build(spec.tokenizer),
    content["position_method"],
  )


def _arrays(params, stats):
  """Both trees of arrays in one dict."""
  parts = {"params": params, "stats": stats}
  return {f"{n}/{name}": x for n, tree in parts.items() for name, x in leaves_by_name(tree).items()}


def _content(folder, trust):
  """The plain content of a config, and its calls."""
  content = read_json(folder / CONFIG, dict, _ADVICE)
  values.check_fields(content, _FIELDS, str(folder / CONFIG))
  missing = [name for name in _FIELDS if name not in content]
  if missing:
    raise UserError(f"{folder / CONFIG} has no {', '.join(missing)}. {_ADVICE}")
  if content["format"] != _FORMAT:
    raise UserError(
      f"{folder / CONFIG} has format {content['format']}, but this version reads format {_FORMAT}. "
      "Install the version that wrote it, or a newer one."
    )
  content |= {name: float(content[name]) for name in ("scale", "bias")}
  if not (0 < content["scale"] < math.inf and math.isfinite(content["bias"])):
    raise UserError(f"{folder / CONFIG}: scale or bias is out of range. {_ADVICE}")
  if content["position_method"] not in METHODS:
    raise UserError(
      f"{folder / CONFIG}: position_method is not one of {', '.join(METHODS)}. {_ADVICE}"
    )
  files = content["files"]
  if not all(isinstance(name, str) and Path(name).name == name for name in files):
    raise UserError(f"{folder / CONFIG}: files must be names in the same folder. {_ADVICE}")
  parts = {name: content[name] for name in ("model", "preprocess", "tokenizer")}
  parts["tokenizer"] = {
    name: str(folder / value) if value in files else value
    for name, value in parts["tokenizer"].items()
  }
  return content, config_lib.from_json(json.dumps(parts), trust=trust)


def _with_files(tokenizer, folder):
  """Copies the files that a tokenizer reads; returns its call with their new names, and these."""
  files: list[str] = []
  changed = {}
  for name, value in tokenizer.items():
    if isinstance(value, str) and name != "fn" and Path(value).is_file():
      file = f"tokenizer{Path(value).suffix}" if not files else Path(value).name
      write_atomically(folder / file, read_regular(value, MAX_JSON))
      files.append(file)
      changed[name] = file
  return ConfigDict({**tokenizer, **changed}), files
