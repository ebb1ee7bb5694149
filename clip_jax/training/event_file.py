"""Scalars, images and texts in TensorBoard event files, written at once and read after a kill.

tensorboardX writes from a thread and flushes every few seconds: a killed process loses what it had
in memory, and on a full disk the thread dies with a traceback and the process waits for it forever.
This module uses only its messages and checksums.

Raises ImportError where tensorboardX is not installed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
import socket
import struct
import time

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.record_writer import masked_crc32c

_STRING = 7  # DT_STRING.


class EventFile:
  """A new event file in a folder; every call writes to the disk before it returns."""

  def __init__(self, folder: Path, purge_step: int):
    """Creates the file, and makes TensorBoard hide what earlier files have from `purge_step` on."""
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads the files of a folder in the order of their names.
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
    # Unbuffered, so that a failed write is not repeated when the file is closed.
    self._file = (folder / name).open("xb", buffering=0)
    self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
    start = SessionLog(status=SessionLog.START)
    self._write(Event(wall_time=time.time(), step=purge_step, session_log=start))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the values of a step."""
    summary = Summary(value=[Summary.Value(tag=n, simple_value=x) for n, x in values.items()])
    self._write(Event(wall_time=time.time(), step=step, summary=summary))

  def image(self, step: int, name: str, png: bytes, size: tuple[int, int]) -> None:
    """Writes a PNG image of `size`, (width, height)."""
    image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=png)
    self._write(Event(wall_time=time.time(), step=step, summary=_summary(name, image=image)))

  def text(self, step: int, name: str, text: str) -> None:
    """Writes a text, which TensorBoard shows as Markdown."""
    content = TensorProto(dtype=_STRING, string_val=[text.encode()])
    kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    summary = _summary(f"{name}/text_summary", tensor=content, metadata=kind)
    self._write(Event(wall_time=time.time(), step=step, summary=summary))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _write(self, event):
    data = event.SerializeToString()
    size = struct.pack("<Q", len(data))
    crc = lambda part: struct.pack("<I", masked_crc32c(part))
    left = memoryview(size + crc(size) + data + crc(data))
    while left:  # A disk that is nearly full takes a part of it.
      left = left[self._file.write(left) :]


def _summary(name, **content):
  return Summary(value=[Summary.Value(tag=name, **content)])


def visible(folder: Path) -> set[tuple[int, str]]:
  """Returns (step, name) of the scalars that TensorBoard shows for the event files in a folder."""
  found: set[tuple[int, str]] = set()
  for path in sorted(folder.glob("*tfevents*")):
    for event in _events(path.read_bytes()):
      if event.session_log.status == SessionLog.START:
        found = {one for one in found if one[0] < event.step}
      found.update((event.step, value.tag) for value in event.summary.value)
  return found


def _events(data: bytes) -> Iterator[Event]:
  """Parses the events of a file, up to the first that is incomplete."""
  at = 0
  while at + 12 <= len(data):
    (size,) = struct.unpack_from("<Q", data, at)
    if at + size + 16 > len(data):
      return
    try:
      yield Event.FromString(data[at + 12 : at + 12 + size])
    except DecodeError:
      return
    at += size + 16
