"""What the backward pass keeps, and what it makes again."""

from collections.abc import Callable

import jax

from clip_jax.target import platform

# What the backward pass keeps of a block: inputs of products, norms and attention; results of
# products; or its own input alone.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def made_again(fn: Callable) -> Callable:
  """`fn`, of which the backward pass keeps the arguments and makes the rest again.

  For what is many steps over an array, each of whose results would be kept, and cheap beside the
  products: on a TPU a step waits longer for memory than for products.
  """
  # Where blocks are a loop, the backward pass is one of its own. On a GPU they are none.
  return jax.checkpoint(fn, prevent_cse=platform() == "gpu")
