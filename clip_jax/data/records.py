"""Reads and writes ArrayRecord shards, the random-access format of prepared data sets."""

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping
import concurrent.futures
import glob
import itertools
import os
import re
import threading
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from clip_jax.cli.formatting import printable
from clip_jax.cli.values import FilePath, checked
from clip_jax.data import paths
from clip_jax.data.folder_walk import entries, warn_skipped
from clip_jax.data.record_packing import pack, unpack
from clip_jax.data.selection import record_number
from clip_jax.data.untrusted import MAX_JSON, parse_json
from clip_jax.errors import UserError
from clip_jax.files import TEMPORARY, atomic_path

# For random access: no read-ahead, and a buffer of about the size of one record.
_OPTIONS = dict(options="readahead_buffer_size:0", file_reader_buffer_size=32768)
_REWRITE = "Write it again, or delete it."
_MOST = 2**40  # Records of a shard, so that their sum is a valid length.


@checked
class ArrayRecord:
  """Source of the records in one or more ArrayRecord files; picklable and thread-safe.

  A record is a dict as given to `write`: {"image": encoded bytes or uint8 [H, W, 3], "text": str or
  list of str, ...}.

  Attributes:
    files: paths of the shards; records are numbered in this order.
    manifest: dict, contents of `manifest.json` in the folder of the shards; empty if there is none.
  """

  def __init__(self, path: FilePath):
    """Counts the records, from the manifest if there is one, else by opening every shard once.

    Args:
      path: a file, a folder of `*.array_record*` files, or a pattern such as "data/cc-*"; local or
        gs://BUCKET/... (relies on array_record's gs:// support; not tested on a real bucket).

    Raises:
      UserError: there are no shards, one of a numbered set is missing, or one is truncated.
    """
    self.files = _shards(os.fspath(path))
    self.manifest = _manifest(os.path.dirname(self.files[0]))
    listed = {shard["file"]: shard for shard in self.manifest.get("shards", ())}
    with concurrent.futures.ThreadPoolExecutor(min(32, len(self.files))) as pool:
      counts = list(
        pool.map(lambda file: _count(file, listed.get(os.path.basename(file))), self.files)
      )
    self._ends = list(itertools.accumulate(counts))
    self._reset()

  def _reset(self):
    self._readers = [None] * len(self.files)
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k not in ("_readers", "_lock")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._reset()

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, len(self))
    shard = bisect.bisect_right(self._ends, i)
    start = self._ends[shard - 1] if shard else 0
    return unpack(self._reader(shard).read([i - start])[0])

  def verify(self) -> int:
    """Compares every shard with its checksum in the manifest, which reads all bytes.

    Returns:
      Number of shards.

    Raises:
      UserError: a checksum is missing, or shards do not match theirs.
    """
    sums = {shard["file"]: shard.get("sha256") for shard in self.manifest.get("shards", ())}
    unknown = [file for file in self.files if not sums.get(os.path.basename(file))]
    if unknown:
      raise UserError(
        f"{unknown[0]} has no checksum: no manifest.json in its folder lists it. "
        "python -m clip_jax.prepare writes one; rerun it if it was interrupted."
      )
    with concurrent.futures.ThreadPoolExecutor(min(8, len(self.files))) as pool:
      found = pool.map(paths.sha256, self.files)
      damaged = [
        file for file, digest in zip(self.files, found) if digest != sums[os.path.basename(file)]
      ]
    if damaged:
      raise UserError(
        f"{len(damaged)} of {len(self.files)} shards do not match their checksums: "
        f"{', '.join(damaged[:5])}{', ...' if len(damaged) > 5 else ''}. Copy or "
        "prepare them again."
      )
    return len(self.files)

  def _reader(self, shard):
    if self._readers[shard] is None:
      with self._lock:
        if self._readers[shard] is None:
          self._readers[shard] = ArrayRecordReader(self.files[shard], **_OPTIONS)
    return self._readers[shard]


def write(records: Iterable[Mapping[str, Any]], path: str, *, compression: str = "") -> int:
  """Writes one shard atomically.

  Args:
    records: dicts of str, bytes, numbers, pixels (uint8 [H, W, 3]), and lists and dicts of these.
    path: the file, by convention `NAME.array_record`; an existing file is replaced.
    compression: "" for none (encoded images do not compress further), or an ArrayRecord option such
      as "zstd:9".

  Returns:
    Number of records written.
  """
  # One record per group, because ArrayRecord reads and decompresses whole groups. It also pads
  # files to a multiple of 64 kB, which no option prevents.
  count = 0
  with atomic_path(path) as temporary:
    writer = ArrayRecordWriter(str(temporary), f"group_size:1,{compression or 'uncompressed'}")
    try:
      for record in records:
        writer.write(pack(record))
        count += 1
    finally:
      writer.close()
  return count


def _shards(path):
  """Resolves `path` to a sorted list of shards."""
  if "://" in path:
    return _remote_shards(path)
  if os.path.isdir(path):
    skipped = Counter()
    files = [
      entry.path
      for entry in entries(path, os.path.realpath(path), skipped, suffixes=("",))
      if ".array_record" in entry.name and not entry.name.endswith((".partial", TEMPORARY))
    ]
    warn_skipped(path, skipped, f"Note: {paths.FOLLOW_LINKS}.")
    if not files:
      names = sorted(os.listdir(path))[:5]
      raise UserError(
        f"No *.array_record files in {path}, which contains "
        f"{', '.join(map(printable, names)) or 'nothing'}. "
        "Write some with python -m clip_jax.prepare, or pass a pattern that matches the files."
      )
    _check_complete(files)
    return files
  files = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path)))
  if not files:
    raise UserError(
      f"No records at {path}: no such file or folder, and no match for it as a pattern. Expected "
      "ArrayRecord files; python -m clip_jax.prepare writes them."
    )
  return files


def _remote_shards(path):
  scheme = path.partition("://")[0]
  if scheme != "gs":
    raise UserError(
      f"{path}: array_record reads local files and gs://, not {scheme}://. "
      "Copy the shards to this machine, or mount the bucket."
    )
  files = [f"{scheme}://{file}" for file in paths.matching(path)[1]]
  if files == [path] or any(c in path for c in "*?["):
    return files
  files = [f for f in files if ".array_record" in f and not f.endswith((".partial", TEMPORARY))]
  if not files:
    raise UserError(
      f"No *.array_record files in {path}. Write some with python -m "
      "clip_jax.prepare, or pass a pattern that matches the files."
    )
  _check_complete(files)
  return files


def _check_complete(files):
  """Raises UserError if files of a numbered set such as "NAME-00003-of-00010" are missing."""
  present = set(files)
  expected = set()
  for file in files:
    folder, name = os.path.split(file)
    numbered = re.fullmatch(r"(.*-)(\d+)(-of-(\d+).*)", name)
    if numbered:
      before, number, after, total = numbered.groups()
      expected.update(
        os.path.join(folder, f"{before}{i:0{len(number)}d}{after}") for i in range(int(total))
      )
  missing = sorted(os.path.basename(file) for file in expected - present)
  if missing:
    raise UserError(
      f"{len(missing)} of {len(expected)} shards are missing in {os.path.dirname(files[0])}: "
      f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Write "
      "them, or pass a pattern that matches only the shards to read."
    )


def _manifest(folder):
  """Returns the checked content of manifest.json; {} if there is none."""
  where = os.path.join(folder, "manifest.json")
  try:
    with paths.opened(where) as f:
      content = f.read(MAX_JSON + 1)
  except FileNotFoundError:
    return {}
  except OSError as error:
    raise UserError(f"{where} cannot be read: {error}. {_REWRITE}") from error
  manifest = parse_json(content, where, dict, _REWRITE)
  shards = manifest.get("shards", [])
  if not isinstance(shards, list):
    raise UserError(f"{where}: shards is a {type(shards).__name__}, not a list. {_REWRITE}")
  for i, shard in enumerate(shards):
    if not isinstance(shard, dict) or not isinstance(shard.get("file"), str):
      raise UserError(f"{where}: shard {i} is {shard!r:.60}, without a file name. {_REWRITE}")
    for name in ("records", "bytes"):
      count = shard.get(name)
      if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < _MOST:
        raise UserError(f"{where}: {name} of shard {i} is {count!r:.60}, not a count. {_REWRITE}")
    if not isinstance(shard.get("sha256", ""), str):
      raise UserError(f"{where}: the sha256 of shard {i} is not a string. {_REWRITE}")
  return manifest


def _count(file, listed):
  """Returns the number of records of a shard, from its manifest entry or else from its index.

  Detects truncated shards, because the index is at the end of the file.
  """
  if listed:
    size = paths.size(file)
    if size != listed["bytes"]:
      raise UserError(
        f"{file} is truncated or was replaced: it has {size:,} bytes, but manifest.json lists "
        f"{listed['bytes']:,}. Copy or prepare this shard again."
      )
    return listed["records"]
  reader = ArrayRecordReader(file, **_OPTIONS)
  count = reader.num_records()  # 0 if the index cannot be read; `close` then raises.
  try:
    reader.close()
    return count
  except RuntimeError as error:
    reason = str(error).partition(";")[0]
  raise UserError(
    f"{file} ({paths.size(file):,} bytes) is truncated or not an ArrayRecord file: "
    f"{reason}. Copy or prepare this shard again."
  )
