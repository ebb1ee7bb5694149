"""Writes shards, a JSON note for each shard, and a manifest for the whole set."""

from collections import Counter
from collections.abc import Iterable, Mapping
import json
from pathlib import Path
import re
from typing import Annotated, Any

from clip_jax.cli.values import Range, check_fields, shorten
from clip_jax.data.ingest.clean import clean
from clip_jax.data.ingest.inputs import Job, open_inputs
from clip_jax.data.ingest.webdataset import NOT_ADJACENT
from clip_jax.data.outcomes import Dropped, Ledger, NotAskedFor, total, unaccounted
from clip_jax.data.paths import sha256
from clip_jax.data.record_packing import pack
from clip_jax.data.records import write
from clip_jax.data.untrusted import read_json
from clip_jax.errors import UserError
from clip_jax.files import TEMPORARY, write_atomically

SCHEMA = 1
_Count = Annotated[int, Range(0)]
_COUNTED = ("license", "licence", "source")  # Fields whose values are counted in the manifest.
# Type hints of the fields of a shard's note.
_NOTE: dict[str, Any] = dict(
  file=str,
  records=_Count,
  bytes=_Count,
  sha256=str,
  read=_Count,
  dropped=Mapping[str, _Count],
  changed=Mapping[str, _Count],
  items=Mapping[str, Any],
  dropped_keys=Mapping[str, tuple[str, ...]],
  values=Mapping[str, Mapping[str, _Count]],
  settings=Mapping[str, Any],
)
# Those of its counts of items.
_ITEMS: dict[str, Any] = dict(
  unit=str,
  found=_Count,
  read=_Count,
  dropped=Mapping[str, _Count],
  not_asked_for=Mapping[str, _Count],
)
_MOST_VALUES = 50

_HINTS = {
  NOT_ADJACENT: "Members of a key must be next to each other in a tar: unpack it and pack it again "
  "with tar --sort=name.",
  "text is a dict": "Texts by language are read with --language=KEY.",
  "no image bytes, only a path": "Set --image_root=DIR to the folder that the paths start from.",
}


def shard_name(piece: int, pieces: int) -> str:
  """Returns the file name of a shard without extension."""
  return f"records-{piece:05d}-of-{pieces:05d}"


def write_shard(job: Job, piece: int, out: str) -> dict[str, Any]:
  """Writes one shard and then its note, each atomically.

  The bytes of both depend only on the job and its input, not on the time or the machine.

  Returns:
    The note: file, records, bytes, sha256, input, read, dropped and changed records by reason, what
    became of every item of the input (see `Ledger.summary`), values of the licence and source
    fields, settings, and the keys of dropped records that have one.
  """
  source = open_inputs(job)
  ledger, changed, described = Ledger(source.unit), Counter(), source.describe(piece)
  values = {name: Counter() for name in _COUNTED}
  named: dict[str, list[str]] = {}

  def records():
    for outcome in source.read(piece, ledger.find):
      if isinstance(outcome, NotAskedFor):
        ledger.leave(outcome)
        continue
      try:
        if isinstance(outcome, Dropped):
          raise outcome
        record, changes = clean(outcome.record, job.cleaning)
        _check_writable(record)
      except Dropped as dropped:
        ledger.drop(dropped.reason, outcome.items)
        if dropped.key is not None:
          named.setdefault(dropped.reason, []).append(dropped.key)
        continue
      ledger.take(outcome)
      changed.update((*outcome.changes, *changes))
      for name in _COUNTED:
        if name in record:
          values[name][str(record[name])] += 1
      yield record
    ledger.check(described["input"])

  path = Path(out) / f"{shard_name(piece, len(source))}.array_record"
  for left in path.parent.glob(f".{path.stem}.*{TEMPORARY}"):  # From a killed run.
    left.unlink(missing_ok=True)
  written = write(records(), str(path))
  note = {
    "file": path.name,
    "records": written,
    "bytes": path.stat().st_size,
    "sha256": sha256(str(path)),
    **described,
    "read": ledger.records,
    "dropped": _sorted(ledger.dropped),
    "changed": _sorted(changed),
    "items": ledger.summary(),
    "values": {name: _most_frequent(seen) for name, seen in values.items() if seen},
    "settings": job.settings,
    **({"dropped_keys": _sorted(named)} if named else {}),
  }
  _write_json(_note_path(out, piece, len(source)), note)
  return note


def _check_writable(record):
  try:
    pack(record)
  except (TypeError, ValueError, OverflowError) as error:  # A date, 2**64 ...
    raise Dropped("unwritable field") from error


def is_finished(job: Job, piece: int, out: str) -> dict[str, Any] | None:
  """Returns the note of a shard if it is complete and up to date, else None.

  Raises:
    UserError: the shard was written with other settings.
  """
  source = open_inputs(job)
  path = _note_path(out, piece, len(source))
  try:
    note = read_json(path)
    check_fields(note, _NOTE, str(path))
    check_fields(note["items"], _ITEMS, str(path))
    adds_up = note["read"] == note["records"] + sum(note["dropped"].values())
    whole = note["items"].keys() >= _ITEMS.keys() and note["items"]["unit"] == source.unit
    if not adds_up or not whole or unaccounted(note["items"]):
      return None
    shard = Path(out) / f"{shard_name(piece, len(source))}.array_record"
    if not note.keys() >= _NOTE.keys() - {"dropped_keys"} or note["file"] != shard.name:
      return None
    size = shard.stat().st_size
  except (OSError, UserError, KeyError):  # Missing or damaged: write the shard again.
    return None
  given = job.settings
  different = [name for name in given if note["settings"].get(name) != given[name]]
  if different:
    raise UserError(
      f"{path} was written with other settings: "
      + ", ".join(f"{n} {shorten(note['settings'].get(n))}, not {given[n]!r}" for n in different)
      + ". Use the same settings, or another --out."
    )
  described = source.describe(piece)
  same = all(note.get(name) == value for name, value in described.items())
  return note if same and size == note["bytes"] else None


def check_folder(out: str, pieces: int) -> None:
  """Creates the output folder if necessary.

  Raises:
    UserError: it contains shards of another set.
  """
  Path(out).mkdir(parents=True, exist_ok=True)
  for path in sorted(Path(out).glob("*.array_record")):
    number = re.fullmatch(r"records-\d+-of-(\d+)\.array_record", path.name)
    if not number or int(number[1]) != pieces:
      raise UserError(
        f"{out} contains {path.name}, but the input gives {pieces} shards. Delete it "
        "if the input has changed, or use another --out."
      )


def write_manifest(
  job: Job, out: str, *, licence: str | None = None, source: str | None = None
) -> dict[str, Any] | None:
  """Writes and returns manifest.json if all shards are finished; otherwise returns None.

  Args:
    job: the job that wrote the shards.
    out: the output folder.
    licence, source: licence and origin of the whole set, as stated by the user.

  Raises:
    UserError: all records were dropped.
  """
  notes = [is_finished(job, piece, out) for piece in range(len(open_inputs(job)))]
  if not all(notes):
    return None
  dropped, changed, values = Counter(), Counter(), {name: Counter() for name in _COUNTED}
  named: dict[str, list[str]] = {}
  for note in notes:
    for reason, keys in note.get("dropped_keys", {}).items():
      named.setdefault(reason, []).extend(keys)
    dropped.update(note["dropped"])
    changed.update(note["changed"])
    for name in _COUNTED:
      values[name].update(note["values"].get(name, {}))
  items = total([note["items"] for note in notes])
  read, records = (sum(note[name] for note in notes) for name in ("read", "records"))
  if not records:
    raise UserError(
      f"None of the {read:,} records of {job.where} can be used: "
      + (", ".join(f"{n:,} {reason}" for reason, n in dropped.most_common()) or "there are none")
      + (f". Not asked for: {counted(items['not_asked_for'])}" if items["not_asked_for"] else "")
      + ". Check --format, --image and --text."
      + "".join(f" {hint}" for hint in hints(dropped))
    )
  kept = ("file", "records", "bytes", "sha256", "input", "input_bytes")
  manifest = {
    "schema": SCHEMA,
    "records": records,
    "bytes": sum(note["bytes"] for note in notes),
    "read": read,
    "dropped": _sorted(dropped),
    "changed": _sorted(changed),
    "items": items,
    "licence": licence,
    "source": source,
    "values": {name: _most_frequent(seen) for name, seen in values.items() if seen},
    "settings": job.settings,
    **({"dropped_keys": _sorted(named)} if named else {}),
    **({"sets": sets} if (sets := open_inputs(job).attribution) else {}),
    "shards": [{name: note[name] for name in kept if name in note} for note in notes],
  }
  _write_json(Path(out) / "manifest.json", manifest)
  return manifest


def counted(counts: Mapping[str, int]) -> str:
  """Returns for example "1,024 .cls, 3 hidden", the most frequent first."""
  return ", ".join(f"{n:,} {why}" for why, n in sorted(counts.items(), key=lambda x: (-x[1], x[0])))


def hints(dropped: Iterable[str]) -> list[str]:
  """Returns advice for the reasons for which records were dropped."""
  return [hint for reason, hint in _HINTS.items() if reason in dropped]


def _note_path(out, piece, pieces):
  return Path(out) / f"{shard_name(piece, pieces)}.json"


def _write_json(path, content):
  write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _sorted(counter):
  return dict(sorted(counter.items()))


def _most_frequent(counter):
  """Returns the most frequent values in a deterministic order, and the total of the others."""
  ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
  others = sum(n for _, n in ranked[_MOST_VALUES:])
  return dict(ranked[:_MOST_VALUES]) | ({"(others)": others} if others else {})
