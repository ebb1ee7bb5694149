"""Turns the flags of `prepare` into a job, and refuses those that would be ignored."""

from collections.abc import Mapping
import os
from types import SimpleNamespace
from typing import Any

from clip_jax.cli.suggest import did_you_mean
from clip_jax.data.column_names import shown
from clip_jax.data.decode import ENDINGS as IMAGES
from clip_jax.data.folder_walk import survey
from clip_jax.data.ingest.inputs import CLASSES, FILES, FORMATS, TABLE, Job
from clip_jax.data.table_rows import ENDINGS as TABLES
from clip_jax.errors import UserError

_TABLES = tuple(ending for ending in TABLES if ending != ".txt")
_ANY = {
  *("from", "format", "out", "processes", "shard", "max_side", "quality", "max_text", "language"),
  *("unescape_html", "fix_encoding", "pixels", "licence", "source"),
}
_COLUMNS = {"image", "text", "fields", "records_per_shard"}
_TABLE = {"delimiter", "quotes", "on_error"}
# The flags that each use of the command has.
_USES = {
  "--verify": {"verify", "out"},
  "--tokenizer": {"tokenizer", "from", "format", "pieces"},
  "--format=webdataset": {*_ANY, "image", "text", "fields", "key_dot"},
  "--format=parquet": {*_ANY, *_COLUMNS, "image_root"},
  "--format=table": {*_ANY, *_COLUMNS, *_TABLE, "image_root"},
  "--format=source": {*_ANY, "records_per_shard"},
  "--format=iconify": {*_ANY, "records_per_shard", "licences"},
  f"a {TABLE}": {*_ANY, *_COLUMNS, *_TABLE, "captions"},
  f"a {FILES}": {*_ANY, *_COLUMNS, "caption_files"},
  CLASSES: {*_ANY, "records_per_shard", "classes"},
}
_CHOICES = {
  "quotes": ("csv", "literal"),
  "on_error": ("raise", "skip"),
  "key_dot": ("first", "last"),
}


def job_of(flags: SimpleNamespace, numbers: Mapping[str, Any]) -> Job:
  """Returns the job that the flags describe.

  Args:
    flags: values of all flags of the command.
    numbers: values of those that are numbers.

  Raises:
    UserError: a flag is missing, invalid, or would be ignored.
  """
  where = getattr(flags, "from")
  if flags.format not in FORMATS:
    head = f"--format={flags.format} is not" if flags.format else "Which format? Set --format to"
    hint = did_you_mean(flags.format or "", FORMATS)
    raise UserError(f"{head} one of {', '.join(FORMATS)}.{hint}")
  if not flags.out:
    raise UserError("Where should the shards be written? Set --out=DIR.")
  for name, choices in _CHOICES.items():
    given = getattr(flags, name)
    if given is not None and given not in choices:
      raise UserError(f"--{name}={given} is not one of {', '.join(choices)}.")
  if numbers["quality"] > 100:
    raise UserError(f"--quality={flags.quality} is not between 1 and 100.")
  form, captions = flags.format, None
  if form == "folder":
    form, captions = _folder_format(
      where, flags.captions, files=flags.caption_files, classes=flags.classes
    )
    check_used(flags, form if form == CLASSES else f"a {form}")
  else:
    check_used(flags, f"--format={form}")
  given = {name: getattr(flags, name) for name in ("image", "text", "image_root", "delimiter")}
  given |= {name: getattr(flags, name) or choices[0] for name, choices in _CHOICES.items()}
  given |= {
    name: getattr(flags, name) for name in ("language", "unescape_html", "fix_encoding", "pixels")
  }
  given["licences"] = flags.licences or "permissive"
  if flags.fields is not None:
    given["fields"] = tuple(filter(None, flags.fields.split(",")))
  for name in ("records_per_shard", "max_side", "quality", "max_text"):
    given[name] = numbers[name]
  return Job(where, form, captions=captions, **given)


def check_used(flags: SimpleNamespace, use: str) -> None:
  """Raises UserError if a flag is given that this use of the command would ignore."""
  ignored = [
    name
    for name, value in vars(flags).items()
    if value not in (None, False) and name not in _USES[use]
  ]
  if ignored:
    others = [other for other, uses in _USES.items() if ignored[0] in uses]
    raise UserError(
      f"--{ignored[0]} does not apply to {use}, only to {', '.join(others)}. Remove it."
    )


def _folder_format(
  where: str, captions: str | None, *, files: bool = False, classes: bool = False
) -> tuple[str, str | None]:
  """Returns (TABLE, FILES or CLASSES; name of the table) for a folder.

  Args:
    where: the folder.
    captions: name of the table, if the user named one.
    files, classes: whether the user said that there are caption files or class folders.

  Raises:
    UserError: several of these were given, or none and it is not clear which one the folder has.
  """
  if sum((captions is not None, files, classes)) > 1:
    raise UserError("Set only one of --captions=FILE, --caption_files and --classes.")
  if not os.path.isdir(where):
    raise UserError(f"There is no folder {where}.")
  if captions is not None:
    if not os.path.isfile(os.path.join(where, captions)):
      raise UserError(f"There is no table {os.path.join(where, captions)}.")
    return TABLE, captions
  if files or classes:
    return (FILES if files else CLASSES), None
  names = set(os.listdir(where))
  of_images = {os.path.splitext(name)[0] for name in names if name.lower().endswith(IMAGES)}
  tables = sorted(  # 1.json next to 1.jpg is not a table.
    name
    for name in names
    if name.lower().endswith(_TABLES)
    and name[0] != "."
    and os.path.splitext(name)[0] not in of_images
  )
  if "captions.jsonl" in tables or len(tables) == 1:
    return TABLE, "captions.jsonl" if "captions.jsonl" in tables else tables[0]
  if tables:
    raise UserError(
      f"{where} has several tables: {shown(tables, 5)}. Set --captions to the name of one, or set "
      "--caption_files or --classes."
    )
  endings = {os.path.splitext(file)[1].lower() for file in survey(where).files}
  if endings & {".txt", ".text", ".caption", ".json"}:
    return FILES, None
  raise UserError(
    f"{where} has no captions: no table such as captions.jsonl or captions.csv, and no files such "
    "as 1.txt for 1.jpg. Set --classes if there is one subfolder per class, or name a table "
    "elsewhere with --format=table --from=FILE --image_root=DIR."
  )
