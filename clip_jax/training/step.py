"""The train step: embeddings, loss, gradients and update in a single jitted function."""

from collections.abc import Callable
from typing import Any
import zlib

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import optax

from clip_jax.interfaces import Batch, DeviceAugment, Metrics, batch_size_of
from clip_jax.model.frozen import Frozen, join_frozen, replace_trained, split_frozen
from clip_jax.model.learner import split_state
from clip_jax.model.two_towers import FEATURES
from clip_jax.parallel.placement import shard_batch
from clip_jax.training.grad_cache import grad_cache
from clip_jax.training.state import TrainState


def example_keys(seed: int, step: jax.Array, B: int) -> jax.Array:
  """Returns one key per row of the global batch, [B], depending only on (seed, step, row)."""
  # Threefry draws the same numbers however the batch is sliced or sharded; rbg does not.
  key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))


def entry_keys(keys: jax.Array, name: str) -> jax.Array:
  """Returns keys for one batch entry, [B], so that two views of an image are augmented apart."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(name.encode()))


def make_gradients(
  graphdef: Any,
  *,
  seed: int,
  augment: dict[str, DeviceAugment] | None = None,
  microbatches: int = 1,
  frozen: Frozen | None = None,
) -> Callable[[TrainState, Batch], tuple]:
  """Returns the function (state, batch) -> (loss, metrics, next stats, gradients) of a step.

  The gradients are those of the trained parameters.

  Args:
    graphdef, seed, augment, microbatches, frozen: see `make_train_step`.
  """
  augment, frozen = augment or {}, frozen or {}
  # With a frozen tower, keep its features instead of running it again in the backward pass.
  policy = jax.checkpoint_policies.save_only_these_names(FEATURES) if frozen else None

  def embed(params, stats, batch, keys):
    pairs = jax.vmap(jax.random.split)(keys)  # [B, 2]
    augment_keys, model_keys = pairs[:, 0], pairs[:, 1]
    # Augment inside `embed`, because outside the whole batch would be in memory as floats.
    with jax.named_scope("augmentation"):
      batch = {
        name: augment[name](x, entry_keys(augment_keys, name)) if name in augment else x
        for name, x in batch.items()
      }
    learner = nnx.merge(graphdef, params, stats)
    z = learner.objective.embed(learner.model, batch, train=True, key=model_keys)
    # Arrays that no tower changed stay the same objects, so that `grad_cache` leaves them alone.
    constant = lambda new, old: old if new is old else lax.stop_gradient(new)
    return jax.tree.map(constant, split_state(learner)[2], stats), jax.tree.map(shard_batch, z)

  def selected(state, batch, keys):
    """Returns the rows that the objective selects from a batch, and their keys."""
    with jax.named_scope("selection"):
      _, z = grad_cache(embed, microbatches)(state.params, state.stats, batch, keys)
      objective = nnx.merge(graphdef, state.params, state.stats).objective
      rows = objective.select(z, jax.random.fold_in(keys[0], zlib.crc32(b"selection")))
      return {name: shard_batch(x[rows]) for name, x in batch.items()}, keys[rows]

  def gradients(state, batch):
    trained, held = split_frozen(state.params, frozen)
    keys = example_keys(seed, state.step, batch_size_of(batch))
    if hasattr(nnx.merge(graphdef, state.params, state.stats).objective, "select"):
      batch, keys = selected(state, batch, keys)

    def loss_fn(trained):
      params = join_frozen(trained, held)
      stats, z = grad_cache(embed, microbatches, policy)(params, state.stats, batch, keys)
      learner = nnx.merge(graphdef, params, stats)
      with jax.named_scope("loss"):
        loss, metrics = learner.objective.loss(z, train=True)
      return loss, (metrics, lax.stop_gradient(split_state(learner)[2]))

    (loss, (metrics, stats)), of_params = jax.value_and_grad(loss_fn, has_aux=True)(trained)
    return loss, metrics, stats, of_params

  return gradients


def make_train_step(
  graphdef: Any,
  optimizer: Any,
  *,
  seed: int,
  augment: dict[str, DeviceAugment] | None = None,
  microbatches: int = 1,
  skip_nonfinite: int = 0,
  frozen: Frozen | None = None,
  ema_decay: float | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns the function (state, batch) -> (next state, metrics), to be jitted once.

  A step with a loss or gradient that is not finite is skipped: it changes only the counters. Once
  there is one more of these than `skip_nonfinite` allows, the state is frozen: that step is not
  counted, and later steps change nothing. The caller may therefore check
  `state.skipped > skip_nonfinite` at any later time and still find the last good state, with
  `state.step + 1` as the number of the failed step. The learning rate schedule counts updates, so
  every skipped step leaves the schedule one update short of its end.

  The metrics are the `loss`, those of the objective, the global norms of the gradient (`grad_norm`,
  before any clipping), of the update (`update_norm`) and of the parameters after it (`param_norm`),
  the number of `skipped_steps` so far, and the `learning_rate` if the optimizer gives it. Norms are
  of the trained parameters.

  Args:
    graphdef: structure of the learner, from `split`.
    optimizer: the optimizer, an `optax.GradientTransformation` or a `training.optim.Optimizer`,
      which also keeps learned scalars within their bounds.
    seed: seed of all randomness on the device.
    augment: on-device augmentations by the name of the batch entry.
    microbatches: number of pieces that the batch is embedded in; the loss is that of the whole
      batch.
    skip_nonfinite: number of steps that may be skipped in total.
    frozen: the parameters that are not trained; `graphdef` must be of a model that
      `model.frozen.mark_frozen` has marked.
    ema_decay: decay of the moving average of the parameters, `state.ema`; None for no average, or
      for that of the optimizer.
  """
  frozen = frozen or {}
  gradients = make_gradients(
    graphdef, seed=seed, augment=augment, microbatches=microbatches, frozen=frozen
  )

  def train_step(state, batch):
    loss, metrics, stats, of_params = gradients(state, batch)
    with jax.named_scope("optimizer"):
      trained = split_frozen(state.params, frozen)[0]
      updates, opt_state = optimizer.update(of_params, state.opt_state, trained)
      params = optax.apply_updates(trained, updates)
      if getattr(optimizer, "average", None):
        average = optimizer.average(opt_state, params)
      else:
        average = moving_average(state.ema, params, ema_decay, state.step - state.skipped)
      norm, update_norm = optax.global_norm(of_params), optax.global_norm(updates)
    metrics = {"loss": loss, **metrics, "grad_norm": norm, "update_norm": update_norm}
    if getattr(optimizer, "learning_rate", None):
      metrics["learning_rate"] = optimizer.learning_rate(state.step - state.skipped)

    running = state.skipped <= skip_nonfinite
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    skipped = state.skipped + (running & ~finite)
    # jnp.where rather than lax.cond, so that XLA fuses the selection into the update.
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(running & finite, n, o), new, old)
    with jax.named_scope("optimizer"):
      params, stats, opt_state, average = keep(
        (params, stats, opt_state, average), (trained, state.stats, state.opt_state, state.ema)
      )
      metrics |= {"param_norm": optax.global_norm(params), "skipped_steps": skipped}
      params = replace_trained(state.params, params)
    step = state.step + (skipped <= skip_nonfinite)
    return TrainState(step, params, stats, opt_state, skipped, average), metrics

  return train_step


def moving_average(average: dict, params: dict, decay: float | None, updates: jax.Array) -> dict:
  """Returns the exponential moving average of parameters after one more update.

  The decay after t updates is min(decay, (1 + t) / (10 + t)), so that the average forgets the
  initial parameters soon, as in TensorFlow's ExponentialMovingAverage.
  """
  if decay is None:
    return average
  t = updates.astype(jnp.float32)
  kept = jnp.minimum(decay, (1 + t) / (10 + t))
  return jax.tree.map(lambda a, p: a + (1 - kept) * (p - a), average, params)


def make_diagnosis(graphdef: Any, **options: Any) -> Callable[[TrainState, Batch], Metrics]:
  """Returns the function (state, batch) -> the loss and the gradient norm of each part.

  Used to find out what was not finite in a skipped step. Parts are the towers and projections, by
  their names in the model, and `objective`.

  Args:
    graphdef: structure of the learner.
    **options: `seed`, `augment`, `microbatches` and `frozen`, as for `make_train_step`.
  """
  gradients = make_gradients(graphdef, **options)

  def diagnosis(state, batch):
    loss, _, _, of_params = gradients(state, batch)
    parts = of_params.pop("model", {}) | of_params
    return {"loss": loss, **{name: optax.global_norm(part) for name, part in parts.items()}}

  return diagnosis
