"""Names of arrays in a tree, and the single function that makes them."""

from pathlib import Path

import jax
import optax

from clip_jax.parallel.tree_paths import leaves_by_name, path_name

PACKAGE = Path(__file__).parents[2] / "clip_jax"


def test_keys_fields_and_indices_are_joined_by_slashes():
  tree = {"model": {"blocks": [{"kernel": 1.0}, {"kernel": 2.0}], "stem": {3: (3.0,)}}}
  state = optax.EmptyState(), optax.TraceState(trace=tree)
  names = leaves_by_name(state)
  # Written out by hand; a named tuple contributes the name of its field.
  assert names == {
    "1/trace/model/blocks/0/kernel": 1.0,
    "1/trace/model/blocks/1/kernel": 2.0,
    "1/trace/model/stem/3/0": 3.0,
  }
  assert list(names.values()) == jax.tree.leaves(state)


def test_the_name_of_a_path_is_the_name_of_its_leaf():
  tree = {"b": {"x": 1}, "a": [2]}
  named = jax.tree_util.tree_map_with_path(lambda path, x: (path_name(path), x), tree)
  assert named == {"b": {"x": ("b/x", 1)}, "a": [("a/0", 2)]}


def test_no_other_module_turns_paths_into_text():
  users = [p for p in PACKAGE.rglob("*.py") if "keystr" in p.read_text()]
  assert users == [PACKAGE / "parallel/tree_paths.py"]
  # Reading a path's entries by hand would be the same thing.
  entries = ("DictKey", "SequenceKey", "GetAttrKey", "FlattenedIndexKey")
  assert not [p for p in PACKAGE.rglob("*.py") if any(e in p.read_text() for e in entries)]
