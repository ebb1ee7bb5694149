"""One step of training: embed, loss, gradient, update; all of it one jitted function of a state."""

from collections.abc import Callable
import dataclasses
from typing import Any
import zlib

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import optax

from clip_jax.interfaces import Batch, DeviceAugment, Metrics
from clip_jax.model import Learner, split
from clip_jax.sharding import on_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that changes from step to step, and all of it that a checkpoint holds.

  Attributes:
    step: int32 [], updates made so far.
    params: trained variables, float32, a plain nested dict {"model": ..., "objective": ...}.
    stats: variables that are not trained: what the forward pass itself updates (BatchNorm
      averages) and fixed arrays; empty for a ViT with learned positions and a plain objective.
    opt_state: state of the optimizer.
    skipped: int32 [], steps that changed nothing, because a loss or a gradient was not finite.
  """
  step: jax.Array
  params: dict
  stats: dict
  opt_state: optax.OptState
  skipped: jax.Array


def create(learner: Learner, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step; traceable, so that it can be made sharded or abstract."""
  _, params, stats = split(learner)
  return TrainState(jnp.int32(0), params, stats, optimizer.init(params), jnp.int32(0))


def example_keys(seed: int, step: jax.Array, B: int) -> jax.Array:
  """One key per row of the global batch, [B]: a function of (seed, step, row) and nothing else."""
  # Threefry draws the same numbers however the batch is sliced or split over devices; rbg does not.
  key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))


def entry_keys(keys: jax.Array, name: str) -> jax.Array:
  """Keys of one batch entry, [B], so that two views of an image are not augmented alike."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(name.encode()))


def by_piece(embed: Callable, pieces: int) -> Callable:
  """`embed`, one piece of the rows after the other: same values and gradients, 1/pieces the memory.

  The backward pass embeds each piece again and the loss between sees every row, so this is
  GradCache (Gao et al. 2021) as one transform. A tower with BatchNorm normalises over a piece, and
  its averages are the mean of the pieces'.

  Args:
    embed: (params, stats, batch, keys) -> (stats, embeddings).
    pieces: how many. Piece i is the rows i, i + pieces, ...: each device keeps its own rows, and
      the pieces are the same on any mesh.
  """
  if pieces == 1:
    return embed

  def pieced(params, stats, batch, keys):
    rows = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]), (batch, keys))  # [B/m, m, .]

    def one(mean, i):
      piece = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), rows)
      new, z = embed(params, stats, *piece)
      return jax.tree.map(lambda m, n, o: m + (n - o) / pieces, mean, new, stats), z

    stats, z = lax.scan(jax.checkpoint(one, prevent_cse=False), stats, jnp.arange(pieces))
    return stats, jax.tree.map(lambda x: on_rows(x.swapaxes(0, 1).reshape(-1, *x.shape[2:])), z)

  return pieced


def make_gradients(graphdef: Any, *, seed: int, augment: dict[str, DeviceAugment] | None = None,
                   microbatches: int = 1) -> Callable[[TrainState, Batch], tuple]:
  """The function (state, batch) -> (loss, metrics, next stats, gradients) inside of a step.

  Args: as those of `make_train_step`.
  """
  augment = augment or {}

  def embed(params, stats, batch, keys):
    pairs = jax.vmap(jax.random.split)(keys)                                # [B, 2]
    augment_keys, model_keys = pairs[:, 0], pairs[:, 1]
    # In here, not before: outside, the whole batch would be live as floats.
    with jax.named_scope("augmentation"):
      batch = {name: augment[name](x, entry_keys(augment_keys, name)) if name in augment else x
               for name, x in batch.items()}
    learner = nnx.merge(graphdef, params, stats)
    z = learner.objective.embed(learner.model, batch, train=True, key=model_keys)
    return lax.stop_gradient(split(learner)[2]), jax.tree.map(on_rows, z)

  def gradients(state, batch):
    def loss_fn(params):
      keys = example_keys(seed, state.step, len(batch["tokens"]))
      stats, z = by_piece(embed, microbatches)(params, state.stats, batch, keys)
      learner = nnx.merge(graphdef, params, stats)
      with jax.named_scope("loss"):
        loss, metrics = learner.objective.loss(z)
      return loss, (metrics, lax.stop_gradient(split(learner)[2]))

    (loss, (metrics, stats)), of_params = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return loss, metrics, stats, of_params

  return gradients


def make_train_step(graphdef: Any, optimizer: optax.GradientTransformation, *, seed: int,
                    augment: dict[str, DeviceAugment] | None = None, microbatches: int = 1,
                    skip_nonfinite: int = 0) -> Callable[[TrainState, Batch],
                                                         tuple[TrainState, Metrics]]:
  """The function (state, batch) -> (next state, metrics), to be jitted once.

  A step whose loss or gradient is not finite changes nothing but the counts. The one of these that
  is more than `skip_nonfinite` does not count as a step, and none after it changes anything: the
  state stays the last good one, `state.skipped > skip_nonfinite` says so whenever somebody looks,
  and `state.step` says which step it was. The learning rate's schedule counts updates, so a run
  ends as many updates before its end as steps were left out.

  Args:
    graphdef: structure of the learner, from `split`.
    optimizer: bounds of learned scalars included.
    seed: of everything random on the device.
    augment: what happens to a batch entry on the device, by its name.
    microbatches: pieces that the batch is embedded in; the loss and its gradient are of the whole.
    skip_nonfinite: steps that may be left out, in all.
  """
  gradients = make_gradients(graphdef, seed=seed, augment=augment, microbatches=microbatches)

  def train_step(state, batch):
    loss, metrics, stats, of_params = gradients(state, batch)
    with jax.named_scope("optimizer"):
      updates, opt_state = optimizer.update(of_params, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
      norm = optax.global_norm(of_params)
    metrics = {"loss": loss, **metrics, "gradient_norm": norm}
    if getattr(optimizer, "learning_rate", None):
      metrics["learning_rate"] = optimizer.learning_rate(state.step - state.skipped)

    running = state.skipped <= skip_nonfinite
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    skipped = state.skipped + (running & ~finite)
    # A choice between arrays, not a branch: it becomes a part of the loops that make the update.
    keep = lambda new, old: jax.tree.map(
        lambda n, o: jnp.where(running & finite, n, o), new, old)
    with jax.named_scope("optimizer"):
      params, stats, opt_state = keep((params, stats, opt_state),
                                      (state.params, state.stats, state.opt_state))
    metrics["skipped_steps"] = skipped
    step = state.step + (skipped <= skip_nonfinite)
    return TrainState(step, params, stats, opt_state, skipped), metrics

  return train_step


def make_diagnosis(graphdef: Any, **options: Any) -> Callable[[TrainState, Batch], Metrics]:
  """The function (state, batch) -> the loss, and the norm of the gradient of each part.

  Parts are the towers and projections by their names in the model, and `objective`; to find out
  what was not finite in a step that changed nothing.

  Args:
    graphdef: structure of the learner.
    **options: `seed`, `augment`, `microbatches`, as for `make_train_step`.
  """
  gradients = make_gradients(graphdef, **options)

  def diagnosis(state, batch):
    loss, _, _, of_params = gradients(state, batch)
    parts = of_params.pop("model") | of_params
    return {"loss": loss, **{name: optax.global_norm(part) for name, part in parts.items()}}

  return diagnosis
