"""Names of the arrays in a tree, such as `params/model/image/embedding/kernel`."""

from typing import Any

import jax


def path_name(path: Any) -> str:
  """Formats a JAX key path as its keys joined by slashes."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_name(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by name, in the order of `jax.tree.leaves`."""
  return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
