"""Records in ArrayRecord files: what `prepare` writes and training reads, by random access."""

import bisect
from collections.abc import Iterable, Mapping
import concurrent.futures
import glob
import hashlib
import itertools
import json
import os
import re
import threading
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
import msgpack

from clip_jax.data import paths
from clip_jax.data.selection import record_number
from clip_jax.errors import UserError

# Random access: nothing is read ahead, and a read is about the size of one record.
_OPTIONS = dict(options="readahead_buffer_size:0", file_reader_buffer_size=32768)


class ArrayRecord:
  """Source of the records in one or more ArrayRecord files; picklable, safe for many threads.

  A record is what was given to `write`: {"image": encoded bytes, "text": str or list of str, ...}.

  Attributes:
    files: the shards, in the order in which their records are numbered.
    manifest: dict, from `manifest.json` beside the shards; empty when there is none.
  """

  def __init__(self, path: str):
    """Counts the records, by opening every shard once, or by the manifest if there is one.

    Args:
      path: a file, a folder of `*.array_record*` files, or a pattern such as "data/cc-*"; local, or
        gs://BUCKET/..., as far as array_record reads it (untried: there was no bucket to try).

    Raises:
      UserError: nothing is there, a shard of a numbered set is missing, or a shard is truncated.
    """
    self.files = _shards(os.fspath(path))
    self.manifest = _manifest(os.path.dirname(self.files[0]))
    listed = {shard["file"]: shard for shard in self.manifest.get("shards", ())}
    with concurrent.futures.ThreadPoolExecutor(min(32, len(self.files))) as pool:
      counts = list(pool.map(
          lambda file: _count(file, listed.get(os.path.basename(file))), self.files))
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
    return msgpack.unpackb(self._reader(shard).read([i - start])[0])

  def verify(self) -> int:
    """Compares every shard with its checksum in the manifest; reads all bytes.

    Returns:
      Number of shards.

    Raises:
      UserError: there is no checksum, or shards are not as they were written.
    """
    sums = {shard["file"]: shard["sha256"] for shard in self.manifest.get("shards", ())}
    unknown = [file for file in self.files if os.path.basename(file) not in sums]
    if unknown:
      raise UserError(f"{unknown[0]} has no checksum, because no manifest.json beside it lists it. "
                      "python -m clip_jax.prepare writes one; run it again if it was stopped.")
    with concurrent.futures.ThreadPoolExecutor(min(8, len(self.files))) as pool:
      found = pool.map(_sha256, self.files)
      damaged = [file for file, digest in zip(self.files, found)
                 if digest != sums[os.path.basename(file)]]
    if damaged:
      raise UserError(f"{len(damaged)} of {len(self.files)} shards are not as they were written: "
                      f"{', '.join(damaged[:5])}{', ...' if len(damaged) > 5 else ''}. Copy or "
                      "prepare them again.")
    return len(self.files)

  def _reader(self, shard):
    if self._readers[shard] is None:
      with self._lock:
        if self._readers[shard] is None:
          self._readers[shard] = ArrayRecordReader(self.files[shard], **_OPTIONS)
    return self._readers[shard]


def write(records: Iterable[Mapping[str, Any]], path: str, *, compression: str = "") -> int:
  """Writes one shard, whole or not at all.

  Args:
    records: dicts of str, bytes, numbers, and lists and dicts of them.
    path: the file, by convention `NAME.array_record`; one that exists is replaced.
    compression: "" (images do not compress any further), or ArrayRecord's, such as "zstd:9".

  Returns:
    Number of records written.
  """
  # Groups of one, because a group is read and unpacked as a whole. The file's size is a multiple
  # of 64 kB whatever one does.
  partial = f"{path}.partial"
  writer = ArrayRecordWriter(partial, f"group_size:1,{compression or 'uncompressed'}")
  count = 0
  try:
    for record in records:
      writer.write(msgpack.packb(record))
      count += 1
    writer.close()
    os.replace(partial, path)
  finally:
    if writer.is_open():
      writer.close()
    if os.path.exists(partial):
      os.remove(partial)
  return count


def _shards(path):
  """The files that `path` means, sorted."""
  if "://" in path:
    return _remote_shards(path)
  if os.path.isdir(path):
    pattern = os.path.join(glob.escape(path), "*.array_record*")
    files = sorted(f for f in glob.glob(pattern) if not f.endswith(".partial"))
    if not files:
      there = sorted(os.listdir(path))[:5]
      raise UserError(
          f"No *.array_record files in {path}, which holds {', '.join(there) or 'nothing'}. Write "
          "some with python -m clip_jax.prepare, or name the files by a pattern.")
    _check_complete(files)
    return files
  files = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path)))
  if not files:
    raise UserError(
        f"No records at {path}: no such file, folder or pattern. Expected ArrayRecord files, as "
        "python -m clip_jax.prepare writes them.")
  return files


def _remote_shards(path):
  scheme = path.partition("://")[0]
  if scheme != "gs":
    raise UserError(f"{path}: array_record reads files of this machine and gs://, not {scheme}://. "
                    "Copy the shards here, or mount the bucket.")
  files = [f"{scheme}://{file}" for file in paths.matching(path)[1]]
  if files == [path] or any(c in path for c in "*?["):
    return files
  files = [f for f in files if ".array_record" in f and not f.endswith(".partial")]
  if not files:
    raise UserError(f"No *.array_record files in {path}. Write some with python -m "
                    "clip_jax.prepare, or name the files by a pattern.")
  _check_complete(files)
  return files


def _check_complete(files):
  """Raises if some of "NAME-00003-of-00010" are there and others are not."""
  present = set(files)
  expected = set()
  for file in files:
    folder, name = os.path.split(file)
    numbered = re.fullmatch(r"(.*-)(\d+)(-of-(\d+).*)", name)
    if numbered:
      before, number, after, total = numbered.groups()
      expected.update(os.path.join(folder, f"{before}{i:0{len(number)}d}{after}")
                      for i in range(int(total)))
  missing = sorted(os.path.basename(file) for file in expected - present)
  if missing:
    raise UserError(
        f"{len(missing)} of {len(expected)} shards are missing in {os.path.dirname(files[0])}: "
        f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Make them, or name "
        "those to be read by a pattern.")


def _manifest(folder):
  try:
    with paths.opened(os.path.join(folder, "manifest.json")) as f:
      return json.loads(f.read())
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise UserError(f"{folder}/manifest.json is not JSON: {error}. Write it again, or remove "
                    "it.") from error


def _sha256(file):
  with paths.opened(file) as f:
    return hashlib.file_digest(f, "sha256").hexdigest()  # type: ignore[arg-type]


def _count(file, listed):
  """Number of records in a shard, as the manifest lists it, or else by its index.

  The index is at the end of the file, so this notices a truncated one.
  """
  if listed:
    size = paths.size(file)
    if size != listed["bytes"]:
      raise UserError(
          f"{file} is truncated or another file: it has {size:,} bytes, and its manifest.json says "
          f"{listed['bytes']:,}. Copy or prepare this shard again.")
    return listed["records"]
  reader = ArrayRecordReader(file, **_OPTIONS)
  count = reader.num_records()  # 0 when it could not be read; then `close` says why.
  try:
    reader.close()
    return count
  except RuntimeError as error:
    reason = str(error).partition(";")[0]
  raise UserError(
      f"{file} ({paths.size(file):,} bytes) is truncated or not an ArrayRecord file: "
      f"{reason}. Copy or prepare this shard again.")
