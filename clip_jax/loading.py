"""A trained model, from where it lies: a run of this package, or another library's checkpoint."""

from collections.abc import Callable
import copy
import dataclasses
from pathlib import Path

from flax import nnx
import jax
import numpy as np

from clip_jax import model as model_lib
from clip_jax.checkpoint import Checkpoints
from clip_jax.config import build
from clip_jax.data.crops import Resize
from clip_jax.data.two_step import TwoStep
from clip_jax.embedder import Embedder
from clip_jax.errors import UserError
from clip_jax.interfaces import Tokenizer
from clip_jax.parts import abstract_learner
from clip_jax.positions import fitted
from clip_jax.pretrained import big_vision, hugging_face, open_clip
from clip_jax.pretrained.saved import Saved, abstract, flat
from clip_jax.sharding import make_mesh, replicated

HUB = "hf-hub:"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_KNOWN = """
  the --workdir of a training run: config.json and checkpoints/
  an open_clip directory: open_clip_config.json and open_clip_model.safetensors
  a Hugging Face directory: config.json and model.safetensors
  a big_vision file: NAME.npz
  a repository of the hub with one of these: hf-hub:ORG/NAME"""


def load(where: str | Path, *, image_size: int | tuple[int, int] | None = None,
         trust: tuple[str, ...] = ()) -> Embedder:
  """A model with its own preprocessing and tokenizer.

  What other libraries trained computes in float32; a run computes in what its config says. Where a
  TPU multiplies, float32 is bfloat16 unless `jax.default_matmul_precision("highest")`.

  Args:
    where: the workdir of a run, an open_clip or Hugging Face directory, a big_vision .npz, or
      "hf-hub:ORG/NAME" for one of those in a repository of the hub.
    image_size: pixels a side, or (height, width), if not those that the model was trained for;
      position embeddings are resampled.
    trust: modules beyond this package that a run's config may call; see `config.from_json`.

  Raises:
    UserError: there is no model, or one that is not read; says what was looked for. Or it cannot
      be made for that image size.
  """
  mesh, saved = make_mesh(), read(where, trust=trust)
  if image_size is not None:
    saved = _resized(saved, image_size, f"{where}, at image_size={image_size},")
  return _embedder(saved, mesh=mesh)


def read(where: str | Path, *, trust: tuple[str, ...] = ()) -> Saved:
  """The same, taken apart, for whoever writes it in another form; else like `load`."""
  if str(where).startswith(HUB):
    where = fetched(str(where).removeprefix(HUB))
  where = Path(where)
  return _reader(where)(where, trust)


def _reader(where: Path) -> Callable[[Path, tuple[str, ...]], Saved]:
  """What reads that place."""
  if where.suffix in PICKLED and where.is_file():
    raise UserError(_refusal([where.name], where.parent))
  if where.suffix == ".npz" and where.is_file():
    return lambda where, _: big_vision.read(where)
  has = lambda name: (where / name).is_file()
  if (where / "checkpoints").is_dir() and has("config.json"):
    return _run
  if has(open_clip.CONFIG) and has(open_clip.WEIGHTS):
    return lambda where, _: open_clip.read(where)
  if has(hugging_face.CONFIG) and (has(hugging_face.WEIGHTS) or has(hugging_face.INDEX)):
    return lambda where, _: hugging_face.read(where)
  pickled = sorted(p.name for p in where.iterdir() if p.suffix in PICKLED) if where.is_dir() else []
  if pickled:
    raise UserError(_refusal(pickled, where))
  if has("config.json"):
    raise UserError(
        f"{where} has a config.json, and no checkpoint yet and no weights. If it is a run, it has "
        "not saved a checkpoint yet: wait for one, or set --config.train.save_every to fewer "
        "steps. If it is Hugging Face's, download model.safetensors too.")
  there = sorted(p.name for p in where.iterdir())[:8] if where.is_dir() else []
  found = ("It is no such place." if not where.exists() else
           f"There are: {', '.join(there) or 'no files'}.")
  raise UserError(f"No model lies in {where}. {found} Looked for were:{_KNOWN}")


def _refusal(names, folder):
  """Why a pickle is not read, and how to make it something that is."""
  name = names[0]
  target = hugging_face.WEIGHTS if name.startswith("pytorch_model") else open_clip.WEIGHTS
  return (
      f"{folder / name} is a pickle, and reading a pickle runs whatever code is in it. Convert it "
      "once, where PyTorch is installed:\n"
      f"  import torch, safetensors.torch\n"
      f"  state = torch.load({str(folder / name)!r}, map_location='cpu', weights_only=True)\n"
      "  state = {k.removeprefix('module.'): v.contiguous()\n"
      "           for k, v in state.get('state_dict', state).items()}\n"
      f"  safetensors.torch.save_file(state, {str(folder / target)!r})\n"
      "and load the directory, which needs the config that belongs to the weights too.")


def fetched(repository: str) -> Path:
  """The directory of a repository of the hub, downloaded unless it is in the local cache.

  Args:
    repository: ORG/NAME, or ORG/NAME@REVISION.

  Raises:
    UserError: huggingface_hub is not installed, or the repository cannot be had.
  """
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(f"{HUB}{repository} is fetched by huggingface_hub, which is not installed: "
                    "pip install huggingface_hub.") from error
  name, _, revision = repository.partition("@")
  try:
    return Path(huggingface_hub.snapshot_download(
        name, revision=revision or None,
        allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.npz"]))
  except Exception as error:  # Of many libraries: names, permissions, the network.
    raise UserError(
        f"{HUB}{repository} cannot be had: {error} Is the name ORG/NAME, and is there a network, "
        "or the repository in the cache (HF_HOME)?") from error


def _run(workdir: Path, trust: tuple[str, ...]) -> Saved:
  """The newest checkpoint of a training run."""
  checkpoints = Checkpoints(workdir / "checkpoints")
  if checkpoints.latest() is None:
    raise UserError(f"The run in {workdir} has not saved a checkpoint yet. Wait for one, or set "
                    "--config.train.save_every to fewer steps.")
  config = checkpoints.config(trust=trust)
  graphdef, params, stats = model_lib.split(abstract_learner(config))
  mesh = make_mesh()
  everywhere = lambda tree: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)
  params, stats = checkpoints.restore_learner(everywhere(params), everywhere(stats))
  checkpoints.close()
  learner = nnx.merge(graphdef, params, stats)
  scale, bias = (float(x) for x in learner.objective.logit())
  _, params, stats = model_lib.split(learner.model)
  return Saved(config.model, params, stats, scale, bias, _squash(learner.model),
               build(config.data.views.tokenizer))


def _resized(saved: Saved, image_size: int | tuple[int, int], what: str) -> Saved:
  """The model for another image size."""
  config, old = copy.deepcopy(saved.model), abstract(saved.model)
  with config.ignore_type():
    config.image.image_size = image_size
  new = abstract(config)
  empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), model_lib.split(new)[1])
  grids = (getattr(model.image, "grid", None) for model in (old, new))
  params = fitted(saved.params, empty, *grids, what=what)
  # Averages of BatchNorm stay; fixed positions are those of this size.
  make = lambda key: model_lib.split(build(config, rngs=nnx.Rngs(key)))[2]
  averages = flat(nnx.to_pure_dict(nnx.state(old, nnx.BatchStat)))
  known = flat(saved.stats)
  stats = jax.tree_util.tree_map_with_path(
      lambda path, x: known[name] if (name := _name(path)) in averages else x,
      jax.jit(make)(jax.random.key(0)))
  preprocess = copy.copy(saved.preprocess)
  preprocess.size = new.image.image_size
  if isinstance(preprocess, TwoStep) and preprocess.side:
    preprocess.side = round(preprocess.side * preprocess.size[0] / saved.preprocess.size[0])
  return dataclasses.replace(saved, model=config, params=params, stats=stats, preprocess=preprocess)


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _squash(model):
  """A run's images are squashed to its size."""
  return Resize(model.image.image_size)


def _embedder(saved: Saved, *, mesh: jax.sharding.Mesh) -> Embedder:
  graphdef, _, _ = model_lib.split(abstract(saved.model))
  params, stats = jax.device_put((saved.params, saved.stats), replicated(mesh))
  return Embedder(nnx.merge(graphdef, params, stats), saved.preprocess, saved.tokenizer,
                  scale=saved.scale, bias=saved.bias, mesh=mesh)


def embedder_of(learner: model_lib.Learner, tokenizer: Tokenizer, *,
                mesh: jax.sharding.Mesh) -> Embedder:
  """A learner's model, its images squashed to its size, its logits as the objective scales them."""
  scale, bias = (float(x) for x in learner.objective.logit())
  return Embedder(learner.model, _squash(learner.model), tokenizer, scale=scale, bias=bias,
                  mesh=mesh)
