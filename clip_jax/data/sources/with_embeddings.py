"""A source together with the stored embeddings of its records."""

from typing import Any

import numpy as np

from clip_jax.cli.values import FilePath, checked
from clip_jax.data.decode import UnreadableImage
from clip_jax.data.embedding_store import ARRAYS, EmbeddingStore
from clip_jax.data.score_file import fingerprint
from clip_jax.data.selection import record_number
from clip_jax.errors import UserError
from clip_jax.interfaces import Source


@checked
class WithEmbeddings:
  """Adds to each record its stored embeddings, for `StoredViews`; a selection, see `selection`.

  A record also has "stored": its arrays, as in `embedding_store`, and "record", "seed" and "scale",
  from which `StoredViews` makes the views that were embedded.

  Attributes:
    source: the source that was embedded.
    store: the stored embeddings.
  """

  def __init__(self, source: Source, path: FilePath, check: bool = True):
    """Opens the embeddings.

    Args:
      source: the source that `clip-jax embed` read.
      path: the folder that it wrote.
      check: whether to compare all files with their checksums.

    Raises:
      UserError: the embeddings are damaged, incomplete or of another source.
    """
    self.source, self.store = source, EmbeddingStore(path, check=check)
    manifest = self.store.manifest
    if len(source) != len(self.store) or fingerprint(source) != manifest["source_fingerprint"]:
      raise UserError(
        f"The embeddings in {path} are of another source, with {len(self.store):,} records; this "
        f"one has {len(source):,}. Give the source that was embedded, or rerun clip-jax embed."
      )

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, len(self))
    manifest = self.store.manifest
    arrays = self.store[i]
    if arrays["texts"] < 0:
      raise UnreadableImage(f"The image of record {i} could not be read when it was embedded.")
    stored = {
      **{name: x for name, x in arrays.items() if name in ARRAYS},
      "record": i,
      "seed": manifest["seed"],
      "scale": manifest["scale"],
    }
    return {**self.source[i], "stored": stored}

  def source_indices(self, at: np.ndarray) -> np.ndarray:
    """Maps record indices to indices in `source`, which are the same."""
    return at
