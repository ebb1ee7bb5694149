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
# Bytes that the headers of one member may have. Pax headers, long names and maps of sparse files
# come before a member and can have any size.
_LARGEST_HEADER = 2**20
_LARGEST_JSON = 2**20
_TAR_ERRORS = (
  tarfile.TarError,
  OSError,
  EOFError,
  zlib.error,
  lzma.LZMAError,
  ValueError,
  RecursionError,  # Each header may announce another one.
)


def samples(file: BinaryIO, fields: tuple[str, ...]) -> Iterator[dict[str, Any] | Dropped]:
  """Groups the members of each key into a sample: KEY.jpg (.png, .webp ...), KEY.txt and KEY.json.

  Without a .txt, the text is the "caption" in the .json. Other extensions are ignored.

  Args:
    file: the tar, compressed or not; read once, sequentially.
    fields: names of the entries of the .json to keep.

  Yields:
    {"key": str, "image": bytes, "text": bytes, ...}, without the parts that are missing. A member
    that cannot be used gives a `Dropped` instead: "unsafe path", "not a file" or "file too large".
    The last item is "truncated tar" if the tar is damaged, or "tar header too large"; it stands for
    the incomplete sample and all that may have followed.
  """
  key, members = None, {}
  try:
    # The caller closes the file.
    archive = tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member)  # noqa: SIM115
    while (member := _next(archive)) is not None:
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
  except _HeaderTooLarge:
    yield Dropped("tar header too large")
    return
  except _TAR_ERRORS:
    yield Dropped("truncated tar")
    return
  if members:
    yield _sample(key, members, fields)


def _next(archive):
  """Returns the next member, or None at the end."""
  archive.members.clear()  # Otherwise it keeps all of them.
  archive.pax_headers.clear()  # Global headers would add up, too.
  archive.fileobj.left = _LARGEST_HEADER
  member = archive.next()
  archive.fileobj.left = None
  return member


class _HeaderTooLarge(tarfile.ReadError):
  pass


class _Counted:
  """The file of an archive; limits how much is read while `left`, a number of bytes, is not None.

  Skipping a member's content is a `seek`, which is not limited.
  """

  def __init__(self, file: Any):
    self._file, self.left = file, _LARGEST_HEADER

  def read(self, size: int) -> bytes:
    if self.left is not None:
      self.left -= size
      if self.left < 0:
        raise _HeaderTooLarge
    return self._file.read(size)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._file, name)


class _Member(tarfile.TarInfo):
  """A tar member that raises an error for a damaged header instead of ending the archive."""

  @classmethod
  def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
    if not isinstance(archive.fileobj, _Counted):  # The constructor reads the first member.
      archive.fileobj = _Counted(archive.fileobj)  # type: ignore[assignment]
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
      if len(members["json"]) > _LARGEST_JSON:
        raise ValueError("too large")
      notes = json.loads(members["json"])
      if not isinstance(notes, dict):
        raise ValueError("not an object")
    except (ValueError, RecursionError):
      return sample | {"unreadable JSON": True}
    sample |= {name: notes[name] for name in fields if notes.get(name) is not None}
    if "text" not in members and notes.get("caption") is not None:
      sample["text"] = notes["caption"]
  return sample
