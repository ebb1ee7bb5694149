"""Finds out what kind of data there is at a path, from names and headers only."""

from collections import Counter
import dataclasses
import glob
import os
from pathlib import Path

from clip_jax.cli.formatting import printable
from clip_jax.data.column_names import AUTO, image_column, shown, text_column
from clip_jax.data.decode import ENDINGS as IMAGES
from clip_jax.data.folder_walk import walk
from clip_jax.data.table_rows import ENDINGS, open_table
from clip_jax.errors import UserError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
TABLES = tuple(ending for ending in ENDINGS if ending != ".txt")
_CAPTIONS = (".txt", ".caption", ".json")
_SUPPORTED = (
  "tars of WebDataset, Parquet files, a table (.csv, .tsv, .jsonl) of images and captions or its "
  "folder, a folder with a .txt next to each image, or records that clip-jax prepare wrote"
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
  if not files and ("://" in where or "{" in where):  # `prepare` reads these itself.
    files = [where]
  if not files:
    raise UserError(f"There is nothing at --from={where}. Expected {_SUPPORTED}.")
  if all(file.endswith(TARS) for file in files):
    return Found(_counted(files, "WebDataset tar"), (where, "webdataset", *columns))
  if all(file.endswith(".parquet") for file in files):
    return Found(_counted(files, "Parquet file"), (where, "parquet", *columns))
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
    return Found(_counted(files, "Parquet file"), (str(folder), "parquet", *columns))
  images = {os.path.splitext(name)[0] for name in ending(*IMAGES)}
  # 1.json next to 1.jpg describes that image.
  tables = [n for n in ending(*TABLES) if not (n[-5:] == ".json" and n[:-5] in images)]
  usual = [name for name in tables if Path(name).stem in ("captions", "metadata")]
  if len(tables) == 1 or len(usual) == 1:
    return _table(folder / (usual or tables)[0], image, text)
  if tables:
    raise UserError(
      f"{folder} has several tables: {shown(tables, 8)}. Name one, as in "
      f"--from={folder / tables[0]}."
    )
  return _without_table(folder, columns)


def _without_table(folder, columns):
  """Returns images with a caption file each; raises `UserError` for anything else."""
  files, _ = walk(str(folder), (*IMAGES, *_CAPTIONS))
  kinds = Counter("image" if name.lower().endswith(IMAGES) else "text" for name in files)
  if not kinds["image"]:
    raise UserError(f"{folder} has no data that is known here. Expected {_SUPPORTED}.")
  stems = lambda kind: {
    os.path.splitext(n)[0] for n in files if n.lower().endswith(IMAGES) == (kind == "image")
  }
  both = stems("image") & stems("text")
  if both:
    kind = f"{kinds['image']:,} images, {len(both):,} of them with a caption file"
    return Found(kind, (str(folder), "folder", "--caption_files", *columns), folder)
  raise UserError(
    f"{folder} has {kinds['image']:,} images but no captions, which CLIP needs. Add a table, for "
    "example captions.csv with the columns image and caption, or a .txt next to each image. Images "
    "in one folder per class measure a model: clip-jax evaluate --classification=DIR."
  )


def _table(file, image, text):
  names = open_table(str(file)).columns
  image = image_column(names, image or AUTO, str(file))
  text = text_column(names, text or AUTO, str(file))
  kind = (
    f"the table {printable(file.name)} with images in the column {printable(image)}, captions in "
    f"{printable(text)}"
  )
  arguments = (str(file), "table", f"--image={image}", f"--text={text}")
  return Found(kind, arguments, file.parent)


def _counted(files, what):
  return f"{len(files):,} {what}{'s' if len(files) != 1 else ''}"
