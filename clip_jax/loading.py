"""A trained model, from where it lies."""

from pathlib import Path

from flax import nnx
import jax

from clip_jax import model as model_lib
from clip_jax.checkpoint import Checkpoints
from clip_jax.config import build
from clip_jax.data.crops import Resize
from clip_jax.embedder import Embedder
from clip_jax.errors import UserError
from clip_jax.interfaces import Tokenizer
from clip_jax.parts import abstract_learner
from clip_jax.sharding import make_mesh, replicated


def load(where: str | Path, *, trust: tuple[str, ...] = ()) -> Embedder:
  """The model of a training run, with its own preprocessing and tokenizer.

  Args:
    where: the workdir of a run.
    trust: modules beyond this package that the run's config may call; see `config.from_json`.

  Raises:
    UserError: no run lies there, or it has not saved a checkpoint yet.
  """
  workdir = Path(where)
  if not (workdir / "config.json").is_file():
    raise UserError(f"No model lies in {workdir}. It should be the --workdir of a training run, "
                    "with a config.json and checkpoints in it.")
  checkpoints = Checkpoints(workdir / "checkpoints")
  if checkpoints.latest() is None:
    raise UserError(f"The run in {workdir} has not saved a checkpoint yet. Wait for one, or set "
                    "--config.train.save_every to fewer steps.")
  config = checkpoints.config(trust=trust)
  graphdef, params, stats = model_lib.split(abstract_learner(config))
  mesh = make_mesh()
  everywhere = lambda tree: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)
  learner = nnx.merge(graphdef, *checkpoints.restore_learner(everywhere(params), everywhere(stats)))
  checkpoints.close()
  return embedder_of(learner, build(config.data.views.tokenizer), mesh=mesh)


def embedder_of(learner: model_lib.Learner, tokenizer: Tokenizer, *,
                mesh: jax.sharding.Mesh) -> Embedder:
  """A learner's model, its images squashed to its size, its logits as the objective scales them."""
  scale, bias = (float(x) for x in learner.objective.logit())
  return Embedder(learner.model, Resize(learner.model.image.image_size), tokenizer,
                  scale=scale, bias=bias, mesh=mesh)
