"""Tests of WebDataset tars: grouping by key, and handling of damaged or unsafe members."""

import gzip
import io
import json
import tarfile
import tracemalloc

import pytest

from clip_jax.data.decode import ENDINGS as IMAGES
from clip_jax.data.ingest import webdataset
from clip_jax.data.outcomes import Dropped, Ledger, NotAskedFor
from clip_jax.data.sample_parts import SampleParts


def tar(members):
  """Returns the bytes of a tar; a member is (name, content) or a TarInfo."""
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w") as archive:
    for member in members:
      if isinstance(member, tarfile.TarInfo):
        archive.addfile(member)
        continue
      info = tarfile.TarInfo(member[0])
      info.size = len(member[1])
      archive.addfile(info, io.BytesIO(member[1]))
  return out.getvalue()


def outcomes(data, image=None, text=None, fields=("url",), **options):
  """Returns the outcomes of a tar, after checking that all its members are accounted for."""
  ledger, parts = Ledger("members"), SampleParts.of(image, text, fields)
  made = list(webdataset.samples(io.BytesIO(data), parts, lambda: ledger.find(1), **options))
  for outcome in made:
    if isinstance(outcome, NotAskedFor):
      ledger.leave(outcome)
    elif isinstance(outcome, Dropped):
      ledger.drop(outcome.reason, outcome.items)
    else:
      ledger.take(outcome)
  ledger.check("the tar")
  return made


def read(data, **options):
  """Returns the records of a tar, and the reason in place of each that is dropped."""
  return [
    o.reason if isinstance(o, Dropped) else o.record
    for o in outcomes(data, **options)
    if not isinstance(o, NotAskedFor)
  ]


def left_out(data, **options):
  """Returns the members of a tar that were not asked for, by kind."""
  kinds = [o.kind for o in outcomes(data, **options) if isinstance(o, NotAskedFor)]
  return {kind: kinds.count(kind) for kind in kinds}


PAIRS = [
  member
  for i in range(3)
  for member in (
    (f"{i:05d}.jpg", b"J%d" % i),
    (f"{i:05d}.txt", b"T%d" % i),
    (f"{i:05d}.json", json.dumps({"url": f"u{i}", "caption": "other", "exif": {}}).encode()),
  )
]
SAMPLES = [
  {"key": f"{i:05d}", "image": b"J%d" % i, "text": b"T%d" % i, "url": f"u{i}"} for i in range(3)
]


def test_members_with_the_same_key_form_a_sample():
  assert read(tar(PAIRS)) == SAMPLES
  assert read(gzip.compress(tar(PAIRS))) == SAMPLES


@pytest.mark.parametrize("ending", IMAGES)
def test_every_image_type_of_image_folders_is_an_image(ending):
  assert read(tar([(f"1{ending}", b"I")])) == [{"key": "1", "image": b"I"}]


def test_folders_other_image_types_and_other_extensions_are_handled():
  folder = tarfile.TarInfo("d")
  folder.type = tarfile.DIRTYPE
  assert read(
    tar(
      [
        folder,
        ("d/1.PNG", b"P"),
        ("d/1.txt", b"T"),
        ("d/1.npy", b"?"),
        ("e/1.webp", b"W"),
        ("e/1.txt", b"U"),
        ("readme.md", b"-"),
      ]
    )
  ) == [{"key": "d/1", "image": b"P", "text": b"T"}, {"key": "e/1", "image": b"W", "text": b"U"}]


def test_the_text_comes_from_the_json_if_there_is_no_txt():
  assert read(tar([("1.jpg", b"J"), ("1.json", b'{"caption": "c"}')])) == [
    {"key": "1", "image": b"J", "text": "c"}
  ]


@pytest.mark.parametrize(
  "notes",
  [
    b"{",
    b"7",
    b"\xff",
    b"[" * 100_000,
    b'{"url": ' + b"9" * 5000 + b"}",
    b'{"a": "%s"}' % bytes(2**20),
  ],
  ids=lambda x: str(x[:9]),
)
def test_a_damaged_json_is_reported(notes):
  [taken] = outcomes(tar([("1.jpg", b"J"), ("1.txt", b"T"), ("1.json", notes)]))
  assert taken.record == {"key": "1", "image": b"J", "text": b"T"}
  assert taken.changes == ("unreadable JSON",) and taken.items == 3


def test_a_sample_may_lack_its_image_or_text():
  assert read(tar([("1.txt", b"T"), ("2.jpg", b"J"), ("3.jpg", b"A"), ("3.jpg", b"B")])) == [
    {"key": "1", "text": b"T"},
    {"key": "2", "image": b"J"},
    {"key": "3", "image": b"A"},
    "members not adjacent",  # Of a key that came before without its text.
  ]


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "..\\x.jpg", ".."])
def test_a_path_outside_the_tar_is_rejected(name):
  assert read(tar([(name, b"!"), *PAIRS[:3]])) == ["unsafe path", SAMPLES[0]]


def test_links_and_devices_are_rejected():
  for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
    member = tarfile.TarInfo("1.jpg")
    member.type, member.linkname = kind, "/etc/passwd"
    assert read(tar([member, *PAIRS[:3]])) == ["not a file", SAMPLES[0]]


def test_a_member_that_is_too_large_is_skipped(monkeypatch):
  monkeypatch.setattr(webdataset, "_LARGEST", 1000)
  assert read(tar([("0.jpg", bytes(1001)), *PAIRS[:3]])) == ["file too large", SAMPLES[0]]


def test_a_truncated_tar_yields_the_complete_samples_and_an_error():
  data = tar(PAIRS)
  end = data.rstrip(b"\0")
  end = -(-len(end) // 512) * 512
  for cut in (1, 511, 512, 700, 3 * 1024, 3 * 1024 + 5, 4 * 1024 + 512, 6 * 1024 + 100, end):
    got = read(data[:cut])
    assert got[-1] == "truncated tar", cut
    assert got[:-1] == SAMPLES[: len(got) - 1], cut
    assert len(got) - 1 >= cut // (3 * 1024) - 1
  assert read(data[: end + 512]) == SAMPLES


def test_other_files_and_damaged_headers_are_reported():
  assert read(b"hello" * 500) == ["truncated tar"] == read(b"")
  data = bytearray(tar(PAIRS))
  data[3 * 1024 : 3 * 1024 + 200] = b"x" * 200
  assert read(bytes(data)) == ["truncated tar"]
  assert read(gzip.compress(tar(PAIRS))[:-40])[-1] == "truncated tar"


def header(kind, size, name="x"):
  """Returns the 512 bytes of one header block."""
  member = tarfile.TarInfo(name)
  member.type, member.size = kind, size
  return member.tobuf(tarfile.GNU_FORMAT)


def sparse(blocks):
  """Returns an old GNU sparse member with `blocks` further blocks of its map."""
  first = bytearray(header(tarfile.GNUTYPE_SPARSE, 0, "1.jpg"))
  first[386:482] = b"0" * 96
  first[482] = 1  # The map continues.
  first[483:495] = b"%011o\0" % 0
  first[148:156] = b"%06o\0 " % (sum(first[:148]) + sum(first[156:]) + 8 * 32)
  return bytes(first) + (b"0" * 504 + b"\1" + bytes(7)) * blocks


LARGE_HEADERS = {
  "pax": header(tarfile.XHDTYPE, 8 * 2**30 - 1),
  "global pax": header(tarfile.XGLTYPE, 2**31),
  "pax as Solaris writes it": header(tarfile.SOLARIS_XHDTYPE, 2**31),
  "long name": header(tarfile.GNUTYPE_LONGNAME, 2**31),
  "long link": header(tarfile.GNUTYPE_LONGLINK, 2**31),
  "sparse": sparse(4000),
  "a chain": (header(tarfile.GNUTYPE_LONGNAME, 500_000) + b"x" * 500_224) * 4,
}


class Endless(io.RawIOBase):
  """An endless file of zeros that records the largest read."""

  def __init__(self, start):
    self._start, self.total = io.BytesIO(start), 0

  def readable(self):
    return True

  def readinto(self, buffer):
    got = self._start.readinto(buffer)
    if not got:
      got = len(buffer)
      buffer[:] = b"x" * got
    self.total += got
    assert self.total < 5e7, "It reads all of a header of any size."
    return got


@pytest.mark.parametrize("kind", LARGE_HEADERS)
def test_extended_headers_have_a_limited_size(kind):
  for before in (b"", tar(PAIRS[:3]).rstrip(b"\0").ljust(3072, b"\0")):
    file = Endless(before + LARGE_HEADERS[kind])
    got = list(webdataset.samples(file, SampleParts.of(None, None, ("url",)), lambda: None))
    assert isinstance(got[-1], Dropped) and got[-1].reason == "tar header too large"
    assert file.total < 4e6


def test_a_long_chain_of_small_headers_is_reported():
  one = header(tarfile.GNUTYPE_LONGNAME, 1) + b"x".ljust(512, b"\0")
  assert read(one * 900)[-1] in ("truncated tar", "tar header too large")


def test_global_headers_do_not_add_up():
  out = io.BytesIO()
  for i in range(300):
    out.write(tarfile.TarInfo.create_pax_global_header({f"k{i}": "v" * 9000}))
    out.write(tar([(f"{i}.jpg", b"J")]).rstrip(b"\0").ljust(1024, b"\0"))
  data = out.getvalue()
  tracemalloc.start()
  assert len(read(data)) == 300
  assert tracemalloc.get_traced_memory()[1] < 1e6
  tracemalloc.stop()


def test_ordinary_extended_headers_are_read():
  name = "d" * 80 + "/" + "e" * 80 + "/" + "ü" * 90
  for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
      for ending, content in (("jpg", b"J"), ("txt", b"T")):
        info = tarfile.TarInfo(f"{name}.{ending}")
        info.size, info.pax_headers = 1, {"comment": "c" * 10_000}
        archive.addfile(info, io.BytesIO(content))
    assert read(out.getvalue()) == [{"key": name, "image": b"J", "text": b"T"}]


def test_the_key_ends_at_the_first_dot_or_at_the_last():
  members = [("a/1.5.jpg", b"J"), ("a/1.5.txt", b"T"), ("a/1.6.jpg", b"K"), ("a/1.6.txt", b"U")]
  # As in webdataset, the endings are 5.jpg, 5.txt ... of the key a/1.
  assert read(tar(members)) == []
  assert left_out(tar(members)) == {".5.jpg": 1, ".5.txt": 1, ".6.jpg": 1, ".6.txt": 1}
  assert read(tar(members[:2]), image="5.jpg", text="5.txt") == [
    {"key": "a/1", "image": b"J", "text": b"T"}
  ]
  assert read(tar(members), key_dot="last") == [
    {"key": "a/1.5", "image": b"J", "text": b"T"},
    {"key": "a/1.6", "image": b"K", "text": b"U"},
  ]


def test_members_of_mac_archives_hidden_files_and_variants_are_counted():
  folder = tarfile.TarInfo("d")
  folder.type = tarfile.DIRTYPE
  noise = [
    folder,
    ("./._00000.jpg", b"-"),
    ("__MACOSX/00000.txt", b"-"),
    ("d/.DS_Store", b"-"),
    (".git/00000.jpg", b"-"),
    ("00000.cls", b"7"),
    ("00000.a.json", b"{}"),
    ("00000.b.txt", b"-"),
    ("00000.NPY", b"-"),
    ("README", b"-"),
  ]
  members = [PAIRS[0], *noise[:5], PAIRS[1], *noise[5:], PAIRS[2]]
  assert read(tar(members)) == SAMPLES[:1]
  assert left_out(tar(members)) == {
    "folders": 1,
    "macOS metadata": 2,
    "hidden": 2,
    ".cls": 1,
    ".a.json": 1,
    ".b.txt": 1,
    ".npy": 1,
    "no ending": 1,
  }


def test_the_image_and_the_text_can_be_chosen():
  notes = json.dumps({"caption": "c", "title": "t", "long": ["l", "m"]}).encode()
  members = [
    *(("1.jpg", b"J"), ("1.png", b"P"), ("1.txt", b"T"), ("1.alt", b"A"), ("1.json", notes)),
    *(("2.PNG", b"Q"), ("2.json", b"{}")),
  ]

  def got(**options):
    return [(r.get("image"), r.get("text")) for r in read(tar(members), fields=(), **options)]

  assert got() == [(b"J", b"T"), (b"Q", None)]
  assert left_out(tar(members)) == {".png": 1, ".alt": 1}
  assert got(image="png;jpg") == [(b"P", b"T"), (b"Q", None)]
  assert got(image="jpg", text="alt")[0] == (b"J", b"A")
  assert got(text="title")[0] == (b"J", "t")
  assert got(text="none;long;txt")[0] == (b"J", ["l", "m"])
  assert got(image="webp") == [(None, b"T"), (None, None)]
  assert left_out(tar(members), image="jpg", text="alt") == {".png": 2, ".txt": 1}


def test_members_out_of_order_are_dropped_by_that_reason():
  members = [(f"{i}.{ending}", b"x") for ending in ("jpg", "txt") for i in range(3)]
  assert read(tar(members))[3:] == [webdataset.NOT_ADJACENT] * 3


def test_a_name_that_is_not_utf_8_is_escaped():
  [taken] = outcomes(tar([("\udce9t\udce9.jpg", b"J"), ("\udce9t\udce9.txt", b"T")]))
  assert taken.record["key"] == "\\xe9t\\xe9" and taken.changes == ("name not UTF-8",)
