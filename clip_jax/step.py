"""The train step: embeddings, loss, gradients and update in a single jitted function."""

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
  """Everything that changes from step to step; saved in full by every checkpoint.

  Attributes:
    step: int32 [], steps made so far, including skipped ones within the allowance.
    params: trained variables, float32, as a plain nested dict {"model": ..., "objective": ...}.
    stats: variables that are not trained: those that the forward pass updates (BatchNorm averages)
      and fixed arrays; empty for a ViT with learned position embeddings and a plain objective.
    opt_state: state of the optimizer.
    skipped: int32 [], steps that were skipped because the loss or a gradient was not finite.
  """
  step: jax.Array
  params: dict
  stats: dict
  opt_state: optax.OptState
  skipped: jax.Array


def create(learner: Learner, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the initial train state; traceable, so that it can be created sharded or abstract."""
  _, params, stats = split(learner)
  return TrainState(jnp.int32(0), params, stats, optimizer.init(params), jnp.int32(0))


def example_keys(seed: int, step: jax.Array, B: int) -> jax.Array:
  """Returns one key per row of the global batch, [B], depending only on (seed, step, row)."""
  # Threefry draws the same numbers however the batch is sliced or sharded; rbg does not.
  key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))


def entry_keys(keys: jax.Array, name: str) -> jax.Array:
  """Returns keys for one batch entry, [B], so that two views of an image are augmented apart."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(name.encode()))


def by_piece(embed: Callable, pieces: int) -> Callable:
  """Wraps `embed` to process the rows in pieces: same gradients, 1/pieces of the memory.

  The loss sees the embeddings of all rows, and the backward pass recomputes those of each piece.
  This is GradCache (Gao et al. 2021) as a single transform. BatchNorm normalises over a piece, and
  its running averages are the mean over the pieces.

  Args:
    embed: (params, stats, batch, keys) -> (stats, embeddings).
    pieces: number of pieces. Piece i holds the rows i, i + pieces, ..., so that each device keeps
      its own rows and the pieces are the same on any mesh.
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
  """Returns the function (state, batch) -> (loss, metrics, next stats, gradients) of a step.

  Args:
    graphdef, seed, augment, microbatches: see `make_train_step`.
  """
  augment = augment or {}

  def embed(params, stats, batch, keys):
    pairs = jax.vmap(jax.random.split)(keys)                                # [B, 2]
    augment_keys, model_keys = pairs[:, 0], pairs[:, 1]
    # Augment inside `embed`, because outside the whole batch would be in memory as floats.
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
  """Returns the function (state, batch) -> (next state, metrics), to be jitted once.

  A step with a loss or gradient that is not finite is skipped: it changes only the counters. Once
  there is one more of these than `skip_nonfinite` allows, the state is frozen: that step is not
  counted, and later steps change nothing. The caller may therefore check
  `state.skipped > skip_nonfinite` at any later time and still find the last good state, with
  `state.step + 1` as the number of the failed step. The learning rate schedule counts updates, so
  every skipped step leaves the schedule one update short of its end.

  Args:
    graphdef: structure of the learner, from `split`.
    optimizer: the optimizer, which also keeps learned scalars within their bounds.
    seed: seed of all randomness on the device.
    augment: on-device augmentations by the name of the batch entry.
    microbatches: number of pieces that the batch is embedded in; the loss is that of the whole
      batch.
    skip_nonfinite: number of steps that may be skipped in total.
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
    # jnp.where rather than lax.cond, so that XLA fuses the selection into the update.
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
  """Returns the function (state, batch) -> the loss and the gradient norm of each part.

  Used to find out what was not finite in a skipped step. Parts are the towers and projections, by
  their names in the model, and `objective`.

  Args:
    graphdef: structure of the learner.
    **options: `seed`, `augment` and `microbatches`, as for `make_train_step`.
  """
  gradients = make_gradients(graphdef, **options)

  def diagnosis(state, batch):
    loss, _, _, of_params = gradients(state, batch)
    parts = of_params.pop("model") | of_params
    return {"loss": loss, **{name: optax.global_norm(part) for name, part in parts.items()}}

  return diagnosis
