"""Finds the columns of images and texts in a table by the names that people usually give them."""

from collections.abc import Iterable, Sequence

from clip_jax.cli.formatting import printable
from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError

AUTO = "auto"
# In the order of preference; the case does not matter.
IMAGE = (
  *("image", "image_path", "img_path", "img", "filepath", "file_path", "file_name", "filename"),
  *("path", "file", "image_file", "jpg", "image_bytes"),
)
TEXT = ("caption", "captions", "text", "title", "sentence", "alt_text", "description")
# Fields that `prepare` keeps if they exist, because they document origin and licence.
ORIGIN_FIELDS = ("key", "url", "license", "licence", "source", "author")
_ADDRESSES = ("url", "image_url", "img_url", "link")


def image_column(names: Sequence[str], asked: str, where: str) -> str:
  """Returns the name of the column with the image.

  Args:
    names: columns of the table.
    asked: the name that the user gave, or `AUTO` for the first of `IMAGE` that the table has.
    where: the table, for messages.

  Raises:
    UserError: there is no such column, or only one of addresses.
  """
  found = _column(names, asked, IMAGE)
  if found:
    return found
  addresses = _column(names, AUTO, _ADDRESSES)
  if asked == AUTO and addresses:
    raise UserError(_no_downloads(where, addresses))
  raise UserError(_lacks(where, names, asked, "image", IMAGE))


def text_column(names: Sequence[str], asked: str, where: str) -> str:
  """Returns the name of the column with the text; arguments and errors as in `image_column`."""
  found = _column(names, asked, TEXT)
  if found:
    return found
  raise UserError(_lacks(where, names, asked, "text", TEXT))


def known(names: Iterable[str]) -> int:
  """Returns how many of the two columns of a pair have one of the usual names."""
  names = list(names)
  return sum(_column(names, AUTO, usual) is not None for usual in (IMAGE, TEXT))


def shown(names: Iterable[str], most: int = 20) -> str:
  """Lists names for a message; anyone may have chosen them."""
  names = list(names)
  listed = ", ".join(printable(str(name))[:200] for name in names[:most])
  return listed + (", ..." if len(names) > most else "")


def _column(names, asked, usual):
  if asked != AUTO:
    return asked if asked in names else None
  lower: dict[str, str] = {}
  for name in names:
    lower.setdefault(str(name).strip().lower(), name)
  return next((lower[name] for name in usual if name in lower), None)


def _no_downloads(where, column):
  return (
    f"{where}: column {column!r} holds addresses of images, and clip_jax does not download. "
    "Download the images with a tool such as img2dataset, then pass the tars or files that it "
    "writes, or name the column with the paths of files, as image=NAME or --image=NAME."
  )


def _lacks(where, names, asked, what, usual):
  if asked == AUTO:
    return (
      f"{where} has no column with {'an image' if what == 'image' else 'a text'}, only "
      f"{shown(names)}. Pass its name as {what}=NAME to the source or --{what}=NAME; "
      f"recognised names are {', '.join(usual)}."
    )
  near = did_you_mean(asked, map(str, names))
  return f"{where} has no {asked!r}, only {shown(names)}.{near}" + (
    "" if near else f" Pass the right name as {what}=NAME to the source or --{what}=NAME."
  )
