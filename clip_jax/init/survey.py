"""Finds out what kind of data there is at a path, from names and headers only."""

from collections import Counter
import csv
import dataclasses
import glob
import json
import os
from pathlib import Path

from clip_jax.cli.formatting import printable
from clip_jax.data.folder_walk import walk
from clip_jax.data.sources.folder import IMAGES
from clip_jax.data.untrusted import MAX_LINE, open_regular
from clip_jax.errors import UserError

TARS = (".tar", ".tar.gz", ".tgz")
TABLES = (".jsonl", ".csv", ".tsv")
# Usual names of columns, in the order of preference.
IMAGE_COLUMNS = (
  "image",
  "file_name",
  "filename",
  "filepath",
  "image_path",
  "path",
  "file",
  "img",
  "jpg",
  "png",
)
TEXT_COLUMNS = ("caption", "captions", "text", "title", "TEXT", "description", "alt", "txt")
_SUPPORTED = (
  "tars of WebDataset, Parquet files, a folder with images and a .csv, .tsv or .jsonl table, a "
  "folder with a .txt next to each image, or records that clip-jax prepare wrote"
)


@dataclasses.dataclass(frozen=True)
class Found:
  """Data at a path.

  Attributes:
    kind: one line for the user.
    arguments: flags of `prepare` that read it; None if it is prepared already.
    folder: folder of the images, for `search`; None if they are in archives.
  """

  kind: str
  arguments: tuple[str, ...] | None
  folder: Path | None = None


def survey(where: str, image: str | None = None, text: str | None = None) -> Found:
  """Returns how to read what is at a path.

  Args:
    where: a file, a folder, or a pattern such as "cc3m/*.tar".
    image, text: names of the columns, if the user gave them.

  Raises:
    UserError: nothing is there, it has no captions, or it is not clear what to read.
  """
  columns = tuple(f"--{n}={v}" for n, v in (("image", image), ("text", text)) if v)
  if os.path.isdir(where):
    return _folder(Path(where), image, text, columns)
  files = [where] if os.path.isfile(where) else sorted(glob.glob(where))
  if not files:
    raise UserError(f"There is nothing at --from={where}. Expected {_SUPPORTED}.")
  if all(file.endswith(TARS) for file in files):
    return Found(_counted(files, "WebDataset tar"), (where, "webdataset", *columns))
  if all(file.endswith(".parquet") for file in files):
    return _parquet(where, files, image, text)
  if len(files) == 1 and files[0].endswith(TABLES):
    return _table(Path(files[0]), image, text)
  raise UserError(
    f"--from={where} is {printable(os.path.basename(files[0]))}"
    + (f" and {len(files) - 1} other files" if len(files) > 1 else "")
    + f". Expected {_SUPPORTED}."
  )


def _folder(folder, image, text, columns):
  names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
  ending = lambda *endings: [name for name in names if name.lower().endswith(endings)]
  if ending(".array_record"):
    return Found(f"{len(ending('.array_record')):,} shards of prepared records", None)
  if ending(*TARS):
    files = ending(*TARS)
    return Found(_counted(files, "WebDataset tar"), (str(folder), "webdataset", *columns))
  if files := ending(".parquet"):
    return _parquet(str(folder), [str(folder / files[0]), *files[1:]], image, text)
  tables = ending(*TABLES)
  usual = [name for name in tables if Path(name).stem in ("captions", "metadata")]
  if len(tables) == 1 or len(usual) == 1:
    return _table(folder / (usual or tables)[0], image, text)
  if tables:
    raise UserError(
      f"{folder} has several tables: {', '.join(map(printable, tables[:8]))}. Name one, as in "
      f"--from={folder / tables[0]}."
    )
  return _without_table(folder, columns)


def _without_table(folder, columns):
  """Returns images with a caption file each; raises `UserError` for anything else."""
  files, _ = walk(str(folder), (*IMAGES, ".txt", ".caption"))
  kinds = Counter("image" if name.lower().endswith(IMAGES) else "text" for name in files)
  if not kinds["image"]:
    raise UserError(f"{folder} has no data that is known here. Expected {_SUPPORTED}.")
  stems = lambda kind: {
    os.path.splitext(n)[0] for n in files if n.lower().endswith(IMAGES) == (kind == "image")
  }
  both = stems("image") & stems("text")
  if both:
    kind = f"{kinds['image']:,} images, {len(both):,} of them with a caption file"
    return Found(kind, (str(folder), "folder", *columns), folder)
  raise UserError(
    f"{folder} has {kinds['image']:,} images but no captions, which CLIP needs. Add a table, for "
    "example captions.csv with the columns image and caption, or a .txt next to each image. Images "
    "in one folder per class measure a model: clip-jax evaluate --classification=DIR."
  )


def _table(file, image, text):
  header = _header(file)
  image, text = _column(file, header, "image", image), _column(file, header, "text", text)
  arguments = (str(file.parent), "folder", f"--captions={file.name}")
  kind = f"the table {printable(file.name)} with images in the column {image}, captions in {text}"
  return Found(kind, (*arguments, f"--image={image}", f"--text={text}"), file.parent)


def _header(file):
  """Returns the names of a table's columns."""
  with open_regular(file) as f:
    line = f.readline(MAX_LINE).decode("utf-8-sig", "replace")
  if file.suffix == ".jsonl":
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      row = None
    if not isinstance(row, dict):
      raise UserError(f"The first line of {file} is not a JSON object: {printable(line)[:100]}")
    return list(row)
  return next(csv.reader([line], delimiter="\t" if file.suffix == ".tsv" else ","), [])


def _parquet(where, files, image, text):
  from clip_jax.data.sources.parquet import columns

  header = columns(where)
  image, text = _column(where, header, "image", image), _column(where, header, "text", text)
  kind = _counted(files, "Parquet file") + f" with images in the column {image}, captions in {text}"
  return Found(kind, (where, "parquet", f"--image={image}", f"--text={text}"))


def _column(where, header, what, given):
  """Returns the name of the column with the image or the text."""
  if given is not None:
    return given
  usual = IMAGE_COLUMNS if what == "image" else TEXT_COLUMNS
  for name in usual:
    if name in header:
      return name
  listed = ", ".join(map(printable, header[:20])) or "none"
  if what == "image" and {"url", "URL", "image_url"} & set(header):
    raise UserError(
      f"{where} has the addresses of images, not images. Download them first, for example with "
      "img2dataset, and start from what it writes."
    )
  raise UserError(
    f"It is not clear which column of {where} has the {what}; it has {listed}. Set --{what}=NAME."
  )


def _counted(files, what):
  return f"{len(files):,} {what}{'s' if len(files) != 1 else ''}"
