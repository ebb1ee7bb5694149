"""Loads a trained model from a run of this package or from another library's checkpoint."""

from collections.abc import Callable
import copy
import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

from flax import nnx
import jax
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax.cli.local_paths import local_path
from clip_jax.config import build, calls, function, parameters_of, short_name
from clip_jax.data.crops import Resize
from clip_jax.data.resize_then_crop import ResizeThenCrop
from clip_jax.errors import UserError
from clip_jax.inference.embedder import Embedder
from clip_jax.inference.shorter_embedding import with_embed_dim
from clip_jax.interfaces import Model, Views
from clip_jax.model import learner as learner_lib
from clip_jax.model.frozen import frozen_params, split_frozen
from clip_jax.model.learner import abstract_learner
from clip_jax.model.transfer import adapt_params
from clip_jax.nn.target import resolve_dtype
from clip_jax.objectives.captioner import decoder_of
from clip_jax.parallel.mesh import make_mesh
from clip_jax.parallel.placement import replicated_sharding
from clip_jax.parallel.tree_paths import leaves_by_name, path_name
from clip_jax.pretrained import big_vision, hugging_face, open_clip, packaged, run_checkpoint
from clip_jax.pretrained.model_bundle import Description, ModelBundle, abstract_model
from clip_jax.pretrained.saved_arrays import DamagedError

HUB = "hf-hub:"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_KNOWN = """
  the name of a model that comes with the package
  the --workdir of a training run: config.json and checkpoints/
  an open_clip directory: open_clip_config.json and open_clip_model.safetensors
  a Hugging Face directory: config.json and model.safetensors
  a big_vision file: NAME.npz
  a folder that export --format=clip_jax wrote
  a repository on the Hugging Face Hub with one of these: hf-hub:ORG/NAME"""


def load(
  where: str | Path,
  *,
  image_size: int | tuple[int, int] | None = None,
  embed_dim: int | None = None,
  dtype: str | None = None,
  text_pool: str | None = None,
  trust: tuple[str, ...] = (),
) -> Embedder:
  """Loads a model with its preprocessing and tokenizer.

  By default, checkpoints of other libraries compute in float32, and runs in the dtype that their
  config sets. TPUs round the inputs of float32 matrix products to bfloat16, unless
  `jax.default_matmul_precision("highest")` is set.

  Args:
    where: the workdir of a run, the output of export --format=clip_jax, an open_clip or Hugging
      Face directory, a big_vision .npz, or "hf-hub:ORG/NAME" for a repository on the Hugging Face
      Hub that has one of these; or the name of a model that comes with the package, which goes
      before a folder of the same name ("./NAME").
    image_size: side length in pixels, or (height, width), if different from the size that the model
      was trained at; position embeddings are resampled.
    embed_dim: number of entries of the embeddings to keep, the first ones, for models that were
      trained for it with `Matryoshka`; all by default.
    dtype: dtype the towers compute in: "float32", "bfloat16", or "auto", the fastest one here
      (bfloat16 on TPUs, GPUs and processors with AMX). In bfloat16, cosine similarities change by
      up to about 0.01.
    text_pool: how a .npz of big_vision pools texts, which the file does not say: "last", "mean" or
      "max".
    trust: modules outside this package that a run's config may call; see `config.from_json`.

  Returns:
    An `Embedder` on all devices.

  Raises:
    UserError: there is no model at `where`, its format or architecture is not supported, or the
      model cannot be adapted to `image_size` or `embed_dim`.
  """
  mesh, saved = make_mesh(), load_bundle(where, text_pool=text_pool, trust=trust)
  if image_size is not None:
    saved = _resized(saved, image_size, f"{where}, at image_size={image_size},")
  if embed_dim is not None:
    saved = with_embed_dim(saved, embed_dim)
  if dtype is not None:
    resolve_dtype(dtype)  # An error, if it is unknown.
    saved = dataclasses.replace(saved, model=_in_dtype(saved.model, dtype))
  return embedder_of_bundle(saved, mesh=mesh)


def load_bundle(
  where: str | Path, *, text_pool: str | None = None, trust: tuple[str, ...] = ()
) -> ModelBundle:
  """Reads a model as a `ModelBundle`, for conversion to another format.

  The arguments and errors are those of `load`.
  """
  if str(where).startswith(HUB):
    where = download(str(where).removeprefix(HUB))
  where = _located(where)
  if text_pool is not None and where.suffix != ".npz":
    raise UserError(
      f"text_pool={text_pool!r} is for a .npz of big_vision; {where} says itself how texts are "
      "pooled. Leave text_pool out."
    )
  form = _format(where)
  return form.read(where, trust) if text_pool is None else big_vision.read(where, text_pool)


def describe(where: str | Path, *, trust: tuple[str, ...] = ()) -> Description:
  """Describes a model without touching a device, so that a config can continue from it.

  The arguments and errors are those of `load`.
  """
  if str(where).startswith(HUB):
    where = download(str(where).removeprefix(HUB))
  where = _located(where)
  return _format(where).describe(where, trust)


class _Format(NamedTuple):
  """How to describe and how to read the models of one format, both (path, trust) -> result."""

  describe: Callable[[Path, tuple[str, ...]], Description]
  read: Callable[[Path, tuple[str, ...]], ModelBundle]


def _foreign(module):
  return _Format(lambda where, _: module.describe(where), lambda where, _: module.read(where))


def _located(where: str | Path) -> Path:
  """Returns the path of a model, which may be the name of one that comes with the package."""
  return packaged.SHIPPED / where if where in packaged.shipped() else local_path(where, "--model")


def _format(where: Path) -> _Format:
  """Returns the format found at `where`."""
  if where.suffix in PICKLED and where.is_file():
    raise UserError(_refusal([where.name], where.parent))
  if where.suffix == ".npz" and where.is_file():
    return _foreign(big_vision)
  has = lambda name: (where / name).is_file()
  if (where / "checkpoints").is_dir() and has("config.json"):
    return _Format(_describe_run, _run)
  if has(packaged.CONFIG) and has(packaged.WEIGHTS):
    return _Format(packaged.describe, packaged.read)
  if has(open_clip.CONFIG) and has(open_clip.WEIGHTS):
    return _foreign(open_clip)
  if has(hugging_face.CONFIG) and (has(hugging_face.WEIGHTS) or has(hugging_face.INDEX)):
    return _foreign(hugging_face)
  pickled = sorted(p.name for p in where.iterdir() if p.suffix in PICKLED) if where.is_dir() else []
  if pickled:
    raise UserError(_refusal(pickled, where))
  if has("config.json"):
    raise UserError(
      f"{where} has a config.json, but no checkpoint and no weights. If it is a training run, it "
      "has not saved a checkpoint yet: wait for one, or set --config.train.save_every to fewer "
      "steps. If it is a Hugging Face model, download model.safetensors too."
    )
  there = sorted(p.name for p in where.iterdir())[:8] if where.is_dir() else []
  found = (
    "There is no such file or directory."
    if not where.exists()
    else f"It contains {', '.join(there) or 'no files'}."
  )
  raise UserError(f"No model found in {where}. {found} Expected one of:{_KNOWN}")


def _refusal(names, folder):
  """Returns the error message for pickled weights, with a script that converts them."""
  name = names[0]
  target = hugging_face.WEIGHTS if name.startswith("pytorch_model") else open_clip.WEIGHTS
  return (
    f"{folder / name} is a pickle, and loading a pickle can run arbitrary code. Convert it once, "
    "in an environment with PyTorch:\n"
    f"  import torch, safetensors.torch\n"
    f"  state = torch.load({str(folder / name)!r}, map_location='cpu', weights_only=True)\n"
    "  state = {k.removeprefix('module.'): v.contiguous()\n"
    "           for k, v in state.get('state_dict', state).items()}\n"
    f"  safetensors.torch.save_file(state, {str(folder / target)!r})\n"
    "Then load the directory, which must also contain the config that belongs to the weights."
  )


def download(repository: str) -> Path:
  """Returns the local directory of a Hub repository, which is downloaded unless cached.

  Args:
    repository: ORG/NAME, or ORG/NAME@REVISION.

  Raises:
    UserError: huggingface_hub is not installed, or the download failed.
  """
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(
      f"Downloading {HUB}{repository} needs huggingface_hub, which is not installed: "
      "pip install huggingface_hub."
    ) from error
  name, _, revision = repository.partition("@")
  try:
    return Path(
      huggingface_hub.snapshot_download(
        name,
        revision=revision or None,
        allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.npz"],
      )
    )
  except Exception as error:  # Several libraries raise their own errors here.
    raise UserError(
      f"Cannot download {HUB}{repository}: {error} Check that the name is ORG/NAME, and that "
      "there is a network connection or the repository is in the cache (HF_HOME)."
    ) from error


def _describe_run(workdir: Path, trust: tuple[str, ...]) -> Description:
  """Describes the model of a training run by the config of its newest checkpoint."""
  folder = workdir.absolute() / "checkpoints"
  steps = run_checkpoint.steps_in(folder)
  if not steps:
    raise UserError(_NOT_SAVED.format(workdir))
  try:
    config = run_checkpoint.RunCheckpoint(folder, max(steps)).config(trust=trust)
  except DamagedError as error:
    raise UserError(
      f"The checkpoint {folder / str(max(steps))} is damaged: {error}. Restore it from a copy, or "
      "remove it to use an older one."
    ) from error
  views = config.data.views
  return Description(
    config.model,
    views.get("preprocess"),
    views.tokenizer,
    any(short_name(one.fn) == "Siglip" for one in calls(config.objective)),
    "bilinear",
    config,
  )


_NOT_SAVED = (
  "The run in {} has not saved a checkpoint yet. Wait for one, or set --config.train.save_every to "
  "fewer steps."
)


def _run(workdir: Path, trust: tuple[str, ...]) -> ModelBundle:
  """Reads the newest checkpoint of a training run that is whole."""
  folder = workdir.absolute() / "checkpoints"
  found = run_checkpoint.read_newest(folder, lambda checkpoint: _checkpoint(checkpoint, trust))
  if found is None:
    raise UserError(_NOT_SAVED.format(workdir))
  for line in found.report() if jax.process_index() == 0 else ():
    logging.getLogger("clip_jax").warning(line)
  return found.value


def _checkpoint(checkpoint: run_checkpoint.RunCheckpoint, trust: tuple[str, ...]) -> ModelBundle:
  config = checkpoint.config(trust=trust)
  graphdef, params, stats = learner_lib.split_state(abstract_learner(config))
  mesh = make_mesh()
  everywhere = lambda tree: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated_sharding(mesh)), tree
  )
  average = None
  if config.train.get("evaluate_ema"):
    get = config.optimizer.get
    frozen = frozen_params(params, get("freeze_params", ()), get("unlock_blocks", 0))
    average = everywhere(split_frozen(params, frozen)[0])
  arrays = checkpoint.learner(everywhere(params), everywhere(stats), average)
  learner = nnx.merge(graphdef, *arrays)
  scale, bias = (float(x) for x in learner.objective.logit())
  _, params, stats = learner_lib.split_state(learner.model)
  decoder = decoder_of(learner.objective)
  views = config.data.views
  preprocess = views.get("preprocess")
  return ModelBundle(
    config.model,
    params,
    stats,
    scale,
    bias,
    build(preprocess) if preprocess else squash(learner.model),
    build(views.tokenizer),
    decoder=decoder,
  )


def _resized(saved: ModelBundle, image_size: int | tuple[int, int], what: str) -> ModelBundle:
  """Adapts a model to another image size."""
  config, old = copy.deepcopy(saved.model), abstract_model(saved.model)
  with config.ignore_type():
    config.image.image_size = image_size
  new = abstract_model(config)
  empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), learner_lib.split_state(new)[1])
  grids = (getattr(model.image, "grid", None) for model in (old, new))
  params = adapt_params(saved.params, empty, *grids, what=what, method=saved.position_method)
  # Keep the BatchNorm running averages, but recompute fixed position embeddings for the new size.
  make = lambda key: learner_lib.split_state(build(config, rngs=nnx.Rngs(key)))[2]
  averages = leaves_by_name(nnx.to_pure_dict(nnx.state(old, nnx.BatchStat)))
  known = leaves_by_name(saved.stats)
  stats = jax.tree_util.tree_map_with_path(
    lambda path, x: known[name] if (name := path_name(path)) in averages else x,
    jax.jit(make)(jax.random.key(0)),
  )
  preprocess = copy.copy(saved.preprocess)
  preprocess.size = new.image.image_size
  if isinstance(preprocess, ResizeThenCrop) and preprocess.side:
    preprocess.side = round(preprocess.side * preprocess.size[0] / saved.preprocess.size[0])
  return dataclasses.replace(saved, model=config, params=params, stats=stats, preprocess=preprocess)


def _in_dtype(spec: ConfigDict, dtype: str) -> ConfigDict:
  """Returns a call with another value of `dtype` in every part of it that has this argument."""
  parts = {n: _in_dtype(x, dtype) if isinstance(x, ConfigDict) else x for n, x in spec.items()}
  if "dtype" in parameters_of(function(spec.fn)):
    parts["dtype"] = dtype
  return ConfigDict(parts)


def squash(model: Model) -> Resize:
  """Returns the preprocessing of a run whose views have none: squashes to the model's size."""
  return Resize(model.image.image_size)


def embedder_of_bundle(saved: ModelBundle, *, mesh: jax.sharding.Mesh | None = None) -> Embedder:
  """Makes the embedder of a model on the devices of `mesh`, by default all of them."""
  mesh = make_mesh() if mesh is None else mesh
  graphdef, _, _ = learner_lib.split_state(abstract_model(saved.model))
  params, stats = jax.device_put((saved.params, saved.stats), replicated_sharding(mesh))
  return Embedder(
    nnx.merge(graphdef, params, stats),
    saved.preprocess,
    saved.tokenizer,
    scale=saved.scale,
    bias=saved.bias,
    decoder=saved.decoder,
    mesh=mesh,
  )


def embedder_of(learner: learner_lib.Learner, views: Views, *, mesh: jax.sharding.Mesh) -> Embedder:
  """Makes the embedder of a learner's model, with the preprocessing and tokenizer of its views.

  Without preprocessing, images are squashed to the model's size. The objective provides the logit
  scale and bias.
  """
  scale, bias = (float(x) for x in learner.objective.logit())
  preprocess = getattr(views, "preprocess", None) or squash(learner.model)
  return Embedder(
    learner.model,
    preprocess,
    views.tokenizer,
    scale=scale,
    bias=bias,
    decoder=decoder_of(learner.objective),
    mesh=mesh,
  )
