"""Streams the samples of a WebDataset tar as img2dataset writes it, without unpacking to disk."""

from collections.abc import Iterator
import json
import lzma
import tarfile
from typing import Any, BinaryIO, Self
import zlib

from clip_jax.data.ingest.clean import Dropped
from clip_jax.data.sources.folder import IMAGES

_LARGEST = 100_000_000  # Bytes; limits memory, as compressed or sparse members can claim any size.
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


def samples(file: BinaryIO, fields: tuple[str, ...]) -> Iterator[dict[str, Any] | Dropped]:
  """Groups the members of each key into a sample: KEY.jpg (.png, .webp ...), KEY.txt and KEY.json.

  Without a .txt, the text is the "caption" in the .json. Other extensions are ignored.

  Args:
    file: the tar, compressed or not; read once, sequentially.
    fields: names of the entries of the .json to keep.

  Yields:
    {"key": str, "image": bytes, "text": bytes, ...}, without the parts that are missing. A member
    that cannot be used gives a `Dropped` instead: "unsafe path", "not a file" or "file too large".
    The last item is "truncated tar" if the tar is damaged; it stands for the incomplete sample and
    all that may have followed.
  """
  key, members = None, {}
  try:
    # The caller closes the file.
    archive = tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member)  # noqa: SIM115
    while (member := archive.next()) is not None:
      archive.members.clear()  # type: ignore[attr-defined]  # Otherwise it keeps all of them.
      if member.isdir():
        continue
      rejection = _rejection(member)
      if rejection:
        yield Dropped(rejection)
        continue
      folder, _, name = member.name.rpartition("/")
      stem, _, ending = name.partition(".")
      ending = ending.lower()
      entry = "image" if f".{ending}" in IMAGES else {"txt": "text", "json": "json"}.get(ending)
      if (folder, stem) != key or entry in members:
        if members:
          yield _sample(key, members, fields)
        key, members = (folder, stem), {}
      if entry:
        members[entry] = archive.extractfile(member).read()
  except _TAR_ERRORS:
    yield Dropped("truncated tar")
    return
  if members:
    yield _sample(key, members, fields)


class _Member(tarfile.TarInfo):
  """A tar member that raises an error for a damaged header instead of ending the archive."""

  @classmethod
  def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
    # By default `tarfile` treats a damaged header or a missing end marker as the end of the file.
    try:
      return super().fromtarfile(archive)
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
      raise
    except tarfile.HeaderError as error:
      raise tarfile.ReadError(str(error)) from error


def _rejection(member):
  if member.name.startswith(("/", "\\")) or ".." in member.name.replace("\\", "/").split("/"):
    return "unsafe path"
  if not member.isfile():
    return "not a file"  # A link, device or pipe.
  return "file too large" if member.size > _LARGEST else None


def _sample(key, members, fields):
  sample = {
    "key": "/".join(filter(None, key)),
    **{name: members[name] for name in ("image", "text") if name in members},
  }
  if "json" in members:
    try:
      notes = json.loads(members["json"])
      if not isinstance(notes, dict):
        raise ValueError("not an object")
    except (ValueError, RecursionError):
      return sample | {"unreadable JSON": True}
    sample |= {name: notes[name] for name in fields if notes.get(name) is not None}
    if "text" not in members and notes.get("caption") is not None:
      sample["text"] = notes["caption"]
  return sample
