"""Writes the index of prepared icons: groups of the same drawing, splits and concepts."""

from collections import Counter, defaultdict
from collections.abc import Sequence
import concurrent.futures
import hashlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data.icons.held_out_sets import SPLITS, held_out_sets, kind_of
from clip_jax.data.icons.icon_drawing import decode_drawing
from clip_jax.data.icons.near_duplicates import connected, near_pairs, thumbnail
from clip_jax.data.records import ArrayRecord
from clip_jax.files import atomic_write, write_atomically

INDEX, SUMMARY = "icons.npz", "icons.json"
CONCEPTS = 300
_VAL, _TEST = 2, 5  # Percent of the groups, cumulative.
_FIELDS = ("key", "set", "name", "names")


def write_index(out: str, processes: int = 1) -> dict[str, Any]:
  """Groups the prepared icons of a folder, and splits them by group.

  Drawings that are nearly the same are one drawing. Icons are in one group if they have the same
  drawing, or the same set and name (with other words of style). A group is in one split, except
  that icons of held-out sets are in the split of their kind. Those whose drawing is also in train
  are marked as seen.

  Args:
    out: folder with the shards; the index is written there.
    processes: number of parallel processes.

  Returns:
    The content of `SUMMARY`: counts, held-out sets, concepts and synonyms.
  """
  known, thumbnails = _read(out, processes)
  n = len(thumbnails)
  pairs = near_pairs(thumbnails)
  drawing = connected(n, pairs)
  group = connected(n, pairs, [(one["set"], one["name"]) for one in known])
  split = _splits(known, group)
  in_train = np.unique(drawing[split == 0])
  seen = (split >= SPLITS.index("line")) & np.isin(drawing, in_train)
  concepts = common_names(known)
  number = {name: i for i, name in enumerate(concepts)}
  label = np.array([number.get(one["name"], -1) for one in known], np.int32)
  summary = {
    "icons": n,
    "drawings": int(drawing.max()) + 1,
    "groups": int(group.max()) + 1,
    "names": len({one["name"] for one in known}),
    "splits": {name: int((split == i).sum()) for i, name in enumerate(SPLITS)},
    "seen": {name: int(seen[split == i].sum()) for i, name in enumerate(SPLITS) if i > 2},
    "held_out": {kind: list(sets) for kind, sets in held_out_sets().items()},
    "concepts": list(concepts),
    "synonyms": _synonyms(known, drawing),
  }
  with atomic_write(Path(out) / INDEX, "wb") as f:
    np.savez_compressed(
      f,
      split=split.astype(np.uint8),
      group=group.astype(np.int32),
      drawing=drawing.astype(np.int32),
      label=label,
      seen=seen,
    )
  write_atomically(Path(out) / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
  return summary


def common_names(known: Sequence[dict[str, Any]], most: int = CONCEPTS) -> tuple[str, ...]:
  """Returns the names that most sets share, the most common first; ties in alphabetical order."""
  sets = defaultdict(set)
  for one in known:
    if len(one["name"]) > 2:
      sets[one["name"]].add(one["set"])
  ranked = sorted(sets, key=lambda name: (-len(sets[name]), name))
  return tuple(name for name in ranked[:most] if len(sets[name]) > 1)


def _splits(known, group):
  """Returns the number of each icon's split in `SPLITS`, int64 [n]."""
  first: dict[int, str] = {}
  for one, number in zip(known, group.tolist()):
    first[number] = min(first.get(number, one["key"]), one["key"])
  percent = {
    number: int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32 * 100
    for number, key in first.items()
  }
  return np.array(
    [
      SPLITS.index(kind_of(one["set"]) or _part(percent[number]))
      for one, number in zip(known, group.tolist())
    ]
  )


def _part(percent):
  return "val" if percent < _VAL else "test" if percent < _TEST else "train"


def _synonyms(known, drawing):
  """Returns the names of each drawing that has several, the most common first."""
  names: dict[int, Counter] = defaultdict(Counter)
  for one, number in zip(known, drawing.tolist()):
    names[number].update(one["names"])
  return {str(d): [n for n, _ in c.most_common()] for d, c in names.items() if len(c) > 1}


def _read(out, processes):
  """Returns key, set, name and names of each record, and the thumbnails, uint8 [n, LENGTH]."""
  files = ArrayRecord(out).files
  if processes == 1:
    found = [_read_shard(file) for file in files]
  else:
    with concurrent.futures.ProcessPoolExecutor(
      min(processes, len(files)), multiprocessing.get_context("spawn")
    ) as pool:
      found = list(pool.map(_read_shard, files))
  known = [one for part, _ in found for one in part]
  return known, np.concatenate([thumbnails for _, thumbnails in found])


def _read_shard(file):
  records = ArrayRecord(file)
  known, thumbnails = [], []
  for i in range(len(records)):
    record = records[i]
    known.append({name: record[name] for name in _FIELDS})
    thumbnails.append(thumbnail(decode_drawing(record["image"])))
  return known, np.stack(thumbnails)
