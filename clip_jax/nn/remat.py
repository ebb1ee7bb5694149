"""Rematerialisation: which activations are saved for the backward pass and which are recomputed."""

from collections.abc import Callable
from typing import Annotated

import jax

from clip_jax.cli.values import OneOf
from clip_jax.nn.target import target_platform

# What is saved of a block for the backward pass: the inputs of products, norms and attention
# ("none"); the results of products ("dots"); or only the input of the block ("full").
REMAT_POLICIES = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}
RematPolicy = Annotated[str, OneOf(REMAT_POLICIES)]


def remat(fn: Callable) -> Callable:
  """Wraps `fn` so that only its arguments are saved; the backward pass recomputes the rest.

  Use it for chains of cheap elementwise operations, because otherwise every intermediate result
  would be saved: a step on a TPU waits longer for memory than for matrix products.
  """
  # In a loop over blocks, the backward pass is a separate loop, so there is nothing for CSE to
  # merge. On a GPU the blocks are not in a loop.
  return jax.checkpoint(fn, prevent_cse=target_platform() == "gpu")
