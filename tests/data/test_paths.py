"""Files, folders and patterns resolve alike for local paths and URIs."""

import glob
import hashlib
from pathlib import Path
import subprocess
import sys

import pytest

from clip_jax.data.paths import expand_braces, matching, sha256
from clip_jax.errors import UserError


@pytest.fixture
def tree(tmp_path):
  for name in ("a.txt", "b.txt", "c.bin", "deep/d.txt", "deep/er/e.txt"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  return tmp_path


@pytest.mark.parametrize(
  "pattern", ["*.txt", "[ab].txt", "?.bin", "*/*.txt", "**/*.txt", "d*/d.txt", "a.txt"]
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_patterns_match_as_in_glob(tree, pattern, scheme):
  where, files = matching(f"{scheme}{tree}/{pattern}")
  expected = sorted(glob.glob(f"{tree}/{pattern}", recursive=True))
  if pattern.startswith("**") and scheme:  # In URIs, ** matches at least one folder.
    expected = [f for f in expected if "deep" in f]
  assert files == expected and files
  for file in files:
    assert where.open_input_file(file).read() == Path(file).relative_to(tree).as_posix().encode()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_resolves_to_its_files_with_the_given_suffixes(tree, scheme):
  assert matching(f"{scheme}{tree}", (".txt",))[1] == [f"{tree}/a.txt", f"{tree}/b.txt"]
  assert len(matching(f"{scheme}{tree}")[1]) == 3


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_paths_without_files_raise(tree, scheme):
  with pytest.raises(UserError, match="no files at .*none.*Expected a file, a folder or a pattern"):
    matching(f"{scheme}{tree}/none*")
  with pytest.raises(UserError, match="no files at .*none/x"):
    matching(f"{scheme}{tree}/none/x")
  with pytest.raises(UserError, match=r"no files ending in .zip or .7z at"):
    matching(f"{scheme}{tree}", (".zip", ".7z"))
  for pattern, message in (
    ("{a..b}", "{a..b} is not of the form {00000"),
    ("{a,b", "a brace is not closed"),
    ("{0..9999999}", "has more than 1,000,000 files"),
    ("{a,none,b}", "1 of the 3 expansions match no file: .*none.txt"),
  ):
    with pytest.raises(UserError, match=message):
      matching(f"{scheme}{tree}/{pattern}.txt")


@pytest.mark.parametrize(
  "pattern, expected",
  [
    ("x{08..11}.tar", ["x08.tar", "x09.tar", "x10.tar", "x11.tar"]),
    ("{1..3}", ["1", "2", "3"]),
    ("{2..0}", ["2", "1", "0"]),
    ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
    ("{a,b{c,d}}", ["a", "bc", "bd"]),
    ("plain", ["plain"]),
  ],
)
def test_braces_expand_as_in_a_shell(pattern, expected):
  assert expand_braces(pattern) == expected


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_braces_match_files(tree, scheme):
  assert matching(f"{scheme}{tree}/{{b,a}}.txt")[1] == [f"{tree}/b.txt", f"{tree}/a.txt"]


def test_unknown_uri_schemes_raise():
  with pytest.raises(UserError, match="foo://x/y cannot be accessed: .*such as gs://BUCKET/NAME"):
    matching("foo://x/y")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_checksum_is_that_of_the_files_bytes(tree, scheme):
  assert sha256(f"{scheme}{tree}/a.txt") == hashlib.sha256(b"a.txt").hexdigest()


def test_local_files_need_no_pyarrow(tmp_path):
  (tmp_path / "a.tar").write_bytes(b"content")
  code = f"""
import sys
sys.modules["pyarrow"] = None
import clip_jax.data
from clip_jax.data.paths import matching, opened
files, (name,) = matching({str(tmp_path)!r}, (".tar",))
with files.open_input_stream(name, compression=None) as f, opened(name) as g:
  assert f.read() == g.read() == b"content"
try:
  matching("gs://bucket/*.tar")
except Exception as error:
  assert "scaling-clip-jax[parquet]" in str(error), error
else:
  raise AssertionError("no error")
"""
  ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr
