"""Streams the samples of a WebDataset tar as img2dataset writes it, without unpacking to disk."""

from collections.abc import Callable, Iterator
import lzma
import tarfile
from typing import Any, BinaryIO, Literal, Self
import zlib

from clip_jax.cli.formatting import printable
from clip_jax.data.outcomes import Dropped, NotAskedFor, Outcome, Taken
from clip_jax.data.sample_parts import SampleParts

KeyDot = Literal["first", "last"]
NOT_ADJACENT = "members not adjacent"
_LARGEST = 100_000_000  # Bytes; limits memory, as compressed or sparse members can claim any size.
# Bytes that the headers of one member may have. Pax headers, long names and maps of sparse files
# come before a member and can have any size.
_LARGEST_HEADER = 2**20
_MOST_INCOMPLETE = 100_000  # Keys of incomplete samples to remember, to limit memory.
_TAR_ERRORS = (
  tarfile.TarError,
  OSError,
  EOFError,
  zlib.error,
  lzma.LZMAError,
  ValueError,
  RecursionError,  # Each header may announce another one.
)


def samples(
  file: BinaryIO, parts: SampleParts, find: Callable[[], None], key_dot: KeyDot = "first"
) -> Iterator[Outcome]:
  """Groups the members of each key into a sample: KEY.jpg (.png, .webp ...), KEY.txt and KEY.json.

  As in webdataset, members of a key are adjacent, the key is the path up to the first dot of the
  base name, and members whose base name starts with a dot are not part of a sample.

  Args:
    file: the tar, compressed or not; read once, sequentially.
    parts: endings of the members that hold the parts of a sample.
    find: called for each member, before it is read.
    key_dot: the dot that ends the key, "first" or "last", as in 1.5.jpg with the key 1.5.

  Yields:
    Outcomes for all members. The record of a `Taken` is {"key": str, "image": bytes, "text": bytes,
    ...}, without the parts that are missing. Members that cannot be used are dropped: "unsafe
    path", "not a file", "file too large" or "members not adjacent". The last item is "truncated
    tar" if the tar is damaged, or "tar header too large"; it stands for the incomplete sample and
    all that may have followed, which counts as one member.
  """
  group, grouped = None, {}
  pending = 0  # Members that were found, but not yielded yet.
  incomplete: set[str] = set()  # Keys of samples that lack a part.

  def finished():
    if grouped:
      yield from _sample(group, grouped, parts, incomplete)

  try:
    # The caller closes the file.
    archive = tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member)  # noqa: SIM115
    while (member := _next(archive)) is not None:
      find()
      pending += 1
      key, ending, outcome = _named(member, key_dot)
      if outcome is None and not parts.wants(ending):
        outcome = NotAskedFor(printable(f".{ending}"[:20]))
      if outcome is None and member.size > _LARGEST:
        outcome = Dropped("file too large")
      if outcome is not None:
        pending -= 1
        yield outcome
        continue
      if key != group or ending in grouped:
        pending = 1
        yield from finished()
        group, grouped = key, {}
      grouped[ending] = archive.extractfile(member).read()
  except _TAR_ERRORS as error:
    find()
    large = isinstance(error, _HeaderTooLarge)
    yield Dropped("tar header too large" if large else "truncated tar", pending + 1)
    return
  yield from finished()


def _named(member, key_dot):
  """Returns (key, ending in lower case, outcome of a member that is no part of a sample)."""
  if member.isdir():
    return None, "", NotAskedFor("folders")
  name = member.name
  if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
    return None, "", Dropped("unsafe path")
  folder, _, base = name.removeprefix("./").rpartition("/")
  if base.startswith("._") or "__MACOSX" in folder.split("/"):
    return None, "", NotAskedFor("macOS metadata")
  if base.startswith(".") or any(
    part.startswith(".") and part != "." for part in folder.split("/")
  ):
    return None, "", NotAskedFor("hidden")
  stem, dot, ending = base.partition(".") if key_dot == "first" else base.rpartition(".")
  if not member.isfile():  # A link, device or pipe.
    return None, "", Dropped("not a file")
  if not dot:
    return None, "", NotAskedFor("no ending")
  return f"{folder}/{stem}" if folder else stem, ending.lower(), None


def _sample(key, members, parts, incomplete):
  record, used, changes = parts.assemble(members)
  for ending in members:
    if ending not in used:
      yield NotAskedFor(printable(f".{ending}"[:20]))
  if not used:
    return
  if "image" not in record or "text" not in record:
    if key in incomplete:
      yield Dropped(NOT_ADJACENT, len(used))
      return
    if len(incomplete) < _MOST_INCOMPLETE:
      incomplete.add(key)
  try:
    key.encode("utf-8")
  except UnicodeEncodeError:  # `tarfile` reads bytes that are not UTF-8 as halves of surrogates.
    key = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    changes.append("name not UTF-8")
  yield Taken({"key": key, **record}, len(used), tuple(changes))


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
