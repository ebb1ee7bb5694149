"""`ModelBundle`, a checkpoint of any format in memory, and helpers to read and write it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from flax import nnx
import jax
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax.config import build, call, function, parameters_of, short_name
from clip_jax.data.crops import Resize
from clip_jax.data.resize_then_crop import ResizeThenCrop
from clip_jax.data.untrusted import read_json
from clip_jax.errors import UserError
from clip_jax.files import write_atomically
from clip_jax.interfaces import Tokenizer
from clip_jax.model.learner import split_state
from clip_jax.model.text_decoder import TextDecoder
from clip_jax.model.two_towers import TwoTowers
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.pretrained import name_table
from clip_jax.towers.sizes import transformer_size


@dataclasses.dataclass(frozen=True)
class Description:
  """A checkpoint without its arrays, as calls that a config can hold.

  Attributes:
    model: a call of `TwoTowers`.
    preprocess: a call of `Resize` or `ResizeThenCrop`; None for the default of a run of this
      package, which squashes images to the model's size.
    tokenizer: a call of a tokenizer.
    biased: whether the logit has a bias, as SigLIP's.
    position_method: how the library that the checkpoint comes from resamples position embeddings,
      a name in `model.transfer.METHODS`.
    config: the whole config, for a run of this package.
  """

  model: ConfigDict
  preprocess: ConfigDict | None
  tokenizer: ConfigDict
  biased: bool
  position_method: str
  config: ConfigDict | None = None


@dataclasses.dataclass
class ModelBundle:
  """A model with its weights, preprocessing and tokenizer: the common form of all formats.

  Attributes:
    model: a call of `TwoTowers`.
    params, stats: the model's arrays, as `split_state` returns them.
    scale, bias: logit = scale * z_image @ z_text + bias, for unit vectors.
    preprocess, tokenizer: arguments of `Embedder`.
    position_method: as in `Description`.
    decoder: the text decoder of a run that was trained with `Captioner`, or None.
  """

  model: ConfigDict
  params: dict
  stats: dict
  scale: float
  bias: float
  preprocess: Resize | ResizeThenCrop
  tokenizer: Tokenizer
  position_method: str = "bilinear"
  decoder: TextDecoder | None = None


def read(
  description: Description,
  table: list[name_table.Name],
  arrays: dict[str, np.ndarray],
  where: str,
  *,
  ignored: tuple[str, ...] = (),
) -> ModelBundle:
  """Fills a model with another library's arrays.

  Args:
    description: the model, its preprocessing and its tokenizer.
    table: the name table. The logarithm of the logit scale has the path "log_scale" in it, the
      logit bias "bias".
    arrays: the other library's arrays by name.
    where: the origin of `arrays`, for error messages.
    ignored: glob patterns of array names to skip.

  Raises:
    UserError: arrays are missing, unexpected or misshapen.
  """
  _, params, stats = split_state(abstract_model(description.model))
  needed = sum(x.size for x in jax.tree.leaves((params, stats)))
  if needed > 2 * sum(x.size for x in arrays.values()) + 2**20:
    raise UserError(
      f"The config of {where} describes a model of {needed:,} parameters, but the file holds "
      f"{sum(x.size for x in arrays.values()):,}. Download both again."
    )
  empty = lambda tree: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
  params, stats = empty(params), empty(stats)
  scalars = {"log_scale": np.zeros((), np.float32), "bias": np.zeros((), np.float32)}
  if "bias" not in {row.ours for row in table}:
    del scalars["bias"]
  name_table.read(
    table,
    {**leaves_by_name(params), **leaves_by_name(stats), **scalars},
    arrays,
    where,
    ignored=ignored,
  )
  if not -80 < scalars["log_scale"] < 80:
    raise UserError(f"{where}: the logarithm of the logit scale is {scalars['log_scale']}.")
  return ModelBundle(
    description.model,
    params,
    stats,
    math.exp(scalars["log_scale"]),
    float(scalars.get("bias", 0.0)),
    build(description.preprocess),
    build(description.tokenizer),
    description.position_method,
  )


def written(saved: ModelBundle, table: list[name_table.Name]) -> dict[str, np.ndarray]:
  """Returns a model's arrays under another library's names."""
  arrays = {**leaves_by_name(saved.params), **leaves_by_name(saved.stats)}
  tree = {name: np.asarray(x) for name, x in arrays.items()}
  tree["log_scale"] = np.asarray(math.log(saved.scale), np.float32)
  if "bias" in {row.ours for row in table}:
    tree["bias"] = np.asarray(saved.bias, np.float32)
  return name_table.written(table, tree)


def abstract_model(model: ConfigDict) -> TwoTowers:
  """Returns an abstract model, with shapes in place of arrays."""
  return jax.eval_shape(lambda key: build(model, rngs=nnx.Rngs(key)), jax.random.key(0))


def complete_spec(spec: ConfigDict) -> ConfigDict:
  """Returns a call with default arguments filled in and a size name replaced by its numbers.

  A saved call lacks the arguments that were added to the code after it was written.
  """
  spec = call(
    function(spec.fn),
    **{
      name: complete_spec(x) if isinstance(x, ConfigDict) else x
      for name, x in spec.items()
      if name != "fn"
    },
  )
  sizes = ("width", "depth", "mlp_dim", "num_heads")
  if {"size", *sizes} <= {*spec}:
    found = transformer_size(spec.size, *(spec[name] for name in sizes))
    with spec.unlocked():
      spec.update(dict(zip(sizes, found)))
  return spec


def part_name(spec: ConfigDict) -> str:
  """Returns the name of the class or function that a call refers to, without its module."""
  return short_name(spec.fn)


def preprocessing(saved: ModelBundle) -> dict[str, Any]:
  """Returns the settings of a model's preprocessing: size, resize mode, interpolation and more."""
  found = vars(saved.preprocess) if saved.preprocess is not None else {}
  plain = (int, float, str, bool, tuple, list)
  return {n: v for n, v in found.items() if isinstance(v, plain) and not n.startswith("_")}


def require(spec: ConfigDict, what: str, there: str, **wanted: Any) -> None:
  """Checks that a call's arguments have the values that are fixed in another library's model.

  Args:
    spec: the call.
    what: name of the called thing in the error message.
    there: name of the other library's model.
    wanted: required value by argument name; a tuple holds alternatives.

  Raises:
    UserError: an argument has another value.
  """
  for name, values in wanted.items():
    values = values if isinstance(values, tuple) else (values,)
    if spec[name] not in values:
      raise UserError(
        f"{there} has no equivalent of this model: {what}'s {name} is {spec[name]!r}, but must "
        f"be {' or '.join(map(repr, values))}. {EXPORTABLE}"
      )


# Arguments of towers that every format describes or checks, or that do not change the function.
_PLAIN = frozenset(
  (
    *("fn", "size", "width", "depth", "mlp_dim", "num_heads", "activation", "attention", "dtype"),
    *("patch", "image_size", "pool", "positions", "class_position", "pre_norm", "patch_bias"),
    *("drop_rest", "norm_eps", "remat", "unroll", "vocab_size", "context_length", "causal"),
    *("mask_padding", "eos_id"),
  )
)


def require_plain(spec: ConfigDict, what: str, there: str, *known: str) -> None:
  """Checks that a Vit or TextTransformer has none of the options that other formats cannot store.

  Args:
    spec, what, there: as in `require`.
    known: options that this format stores.

  Raises:
    UserError: an option is on.
  """
  given = {n: x for n, x in spec.items() if n not in _PLAIN and n not in known}
  defaults = {n: p.default for n, p in parameters_of(function(spec.fn)).items() if n in given}
  require(spec, what, there, **{n: (x,) for n, x in defaults.items()})
  require(spec, what, there, activation=("gelu", "gelu_tanh", "quick_gelu"))


EXPORTABLE = (
  "clip_jax can export to open_clip: Vit in OpenAI's form (or SigLIP's, in the sizes that timm "
  "has), ClipResnet, and TextTransformer without mask_padding; to huggingface: Vit and "
  "TextTransformer if both are in OpenAI's or both in SigLIP's form; to big_vision: Vit and "
  "TextTransformer in big_vision's form; to clip_jax, onnx and stablehlo: every model."
)


def load_json(path: Path) -> dict:
  """Returns the content of a JSON file.

  Raises:
    UserError: the file is too large, truncated or otherwise not a JSON object.
  """
  return read_json(path, dict, "Download it again.")


def save_json(path: Path, value: Any) -> None:
  """Writes a value to an indented JSON file."""
  write_atomically(path, json.dumps(value, indent=2) + "\n")
