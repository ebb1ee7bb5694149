"""Muon: orthogonalised momentum for the matrices of the towers, AdamW for everything else."""

from collections.abc import Sequence
import itertools
import math
import re
from typing import Any

import jax
import optax

from clip_jax.cli.values import (
  NonNegativeFloat,
  NonNegativeInt,
  PositiveFloat,
  PositiveFraction,
  PositiveInt,
  checked,
)
from clip_jax.errors import UserError
from clip_jax.model.frozen import examples
from clip_jax.parallel.partition import STACKED
from clip_jax.parallel.tree_paths import leaves_by_name, path_name
from clip_jax.training.optim import (
  Decay,
  Groups,
  MomentumDtype,
  Optimizer,
  Pattern,
  chained,
  decay_matching,
)
from clip_jax.training.schedules import Schedule

Dimensions = optax.contrib.MuonDimensionNumbers


@checked
def muon(
  *,
  learning_rate: NonNegativeFloat,
  schedule: Schedule,
  momentum: Decay = 0.95,
  update_rms: PositiveFloat = 0.2,
  iterations: PositiveInt = 5,
  adamw_params: Sequence[Pattern] = (".*/embedding/.*", "objective/.*"),
  b1: Decay = 0.9,
  b2: Decay = 0.98,
  eps: NonNegativeFloat = 1e-6,
  weight_decay: NonNegativeFloat = 0.2,
  decay_params: Sequence[Pattern] = (".*/kernel", ".*/embedding"),
  grad_clip_norm: PositiveFloat | None = None,
  freeze_params: Sequence[Pattern] = (),
  unlock_blocks: NonNegativeInt = 0,
  lr_multipliers: Sequence[tuple[Pattern, PositiveFloat]] = (),
  layer_decay: PositiveFraction | None = None,
  momentum_dtype: MomentumDtype = "float32",
) -> Optimizer:
  """Momentum whose matrices are orthogonalised by Newton-Schulz iterations, and decoupled decay.

  A matrix of `inputs` rows and `outputs` columns is updated by

    p <- p - schedule(t) learning_rate (update_rms sqrt(max(inputs, outputs)) O + weight_decay p)

  where O is Nesterov's momentum with all singular values moved close to 1. The factor gives updates
  about the size of Adam's, so that the learning rate and the decay of `adamw` are a start.

  Each block of a stack is orthogonalised on its own, and so are queries, keys and values, each over
  all of its heads. A convolution is a matrix from its window and input channels to its output
  channels. Vectors, embeddings of tokens and positions, depthwise convolutions and what matches
  `adamw_params` are updated as by `adamw`.

  Args:
    learning_rate: peak learning rate, of both groups.
    schedule: factor of the learning rate over time; see `clip_jax.training.schedules`.
    momentum: decay of the momentum of matrices.
    update_rms: root mean square of an update of a matrix, before the learning rate.
    iterations: Newton-Schulz iterations.
    adamw_params: patterns of kernels that are updated as by `adamw`; by default the embedding of
      patches and the heads of the objective.
    b1, b2, eps: Adam's hyperparameters.
    weight_decay: decoupled weight decay of both groups.
    decay_params: patterns of the parameters to decay.
    grad_clip_norm: maximum global gradient norm; None (default) disables clipping.
    freeze_params, unlock_blocks, lr_multipliers, layer_decay: as in `adamw`.
    momentum_dtype: dtype of the momentum and of Adam's first moment.

  Raises:
    UserError: from `init`, patterns match no parameter, freeze all of them, or leave no matrix.

  Source: Jordan et al. 2024 (Muon), as in optax.contrib; Liu et al. 2025 (Muon is Scalable), sec.
  2.2, for the decay and the size of updates.
  """

  def labels(params):
    def one(path, p):
      return "adamw" if matrix_axes(path_name(path), p.shape, adamw_params) is None else "muon"

    return jax.tree_util.tree_map_with_path(one, params)

  def axes(params):  # Of the matrices only.
    return jax.tree_util.tree_map_with_path(
      lambda path, p: matrix_axes(path_name(path), p.shape, adamw_params), params
    )

  steps = optax.partition(
    {
      "muon": optax.chain(
        optax.contrib.scale_by_muon(
          ns_steps=iterations,
          beta=momentum,
          mu_dtype=momentum_dtype,
          weight_dimension_numbers=axes,
        ),
        _scaled(axes, update_rms),
      ),
      "adamw": optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=momentum_dtype),
    },
    labels,
  )

  optimizer = chained(
    steps,
    decay_matching(weight_decay, decay_params),
    None,
    learning_rate=learning_rate,
    schedule=schedule,
    grad_clip_norm=grad_clip_norm,
    groups=Groups(freeze_params, unlock_blocks, lr_multipliers, layer_decay),
    decay_params=decay_params if weight_decay else (),
  )

  def init(params):
    if "muon" not in jax.tree.leaves(labels(params)):
      raise UserError(
        f"Muon has no matrix to update: adamw_params={tuple(adamw_params)} match all kernels, or "
        f"there are none. The parameters are: {examples([*leaves_by_name(params)])}."
      )
    return optimizer.init(params)

  return optimizer._replace(init=init)


def _scaled(axes, update_rms):
  """Multiplies orthogonal matrices so that the root mean square of their elements is given."""

  def update(updates, params=None):
    del params

    def one(x, dimensions):
      sizes = (math.prod(x.shape[a] for a in group) for group in dimensions)
      return x * (update_rms * math.sqrt(max(sizes)))

    return jax.tree.map(one, updates, axes(updates))

  return optax.stateless(update)


def matrix_axes(name: str, shape: tuple[int, ...], adamw_params: Sequence[str]) -> Any:
  """Returns the input and output axes of a kernel, or None if it is not updated as a matrix.

  Args:
    name: name of the parameter.
    shape: its shape.
    adamw_params: patterns of kernels that are not updated as matrices.
  """
  keys = name.split("/")
  if keys[-1] != "kernel" or any(re.fullmatch(p, name) for p in adamw_params):
    return None
  # In a list of blocks, an index follows the name, and there is no depth axis.
  stacked = any(key == STACKED and not after.isdigit() for key, after in itertools.pairwise(keys))
  axes = tuple(range(int(stacked), len(shape)))
  layer = keys[-2] if len(keys) > 1 else ""
  if layer in ("qkv", "key_value") and len(axes) == 4:  # [D, 3, heads, D/h]
    return Dimensions(axes[:1], axes[2:])
  if layer in ("query", "key", "value") and len(axes) == 3:  # [D, heads, D/h]
    return Dimensions(axes[:1], axes[1:])
  if layer == "out" and len(axes) == 3:  # [heads, D/h, D]
    return Dimensions(axes[:2], axes[2:])
  depthwise = len(axes) == 4 and shape[axes[2]] == 1
  if len(axes) == 2 or (len(axes) == 4 and not depthwise):  # [D, D'], or [h, w, D, D']
    return Dimensions(axes[:-1], axes[-1:])
  return None
