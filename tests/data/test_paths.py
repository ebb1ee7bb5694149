"""Files, folders and patterns, local ones and URIs alike."""

import glob
from pathlib import Path

import pytest

from clip_jax.data.paths import matching
from clip_jax.errors import UserError


@pytest.fixture
def tree(tmp_path):
  for name in ("a.txt", "b.txt", "c.bin", "deep/d.txt", "deep/er/e.txt"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  return tmp_path


@pytest.mark.parametrize("pattern", ["*.txt", "[ab].txt", "?.bin", "*/*.txt", "**/*.txt",
                                     "d*/d.txt", "a.txt"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_patterns_mean_what_they_mean_to_glob(tree, pattern, scheme):
  where, files = matching(f"{scheme}{tree}/{pattern}")
  expected = sorted(glob.glob(f"{tree}/{pattern}", recursive=True))
  if pattern.startswith("**") and scheme:  # Here, ** is for one folder at least.
    expected = [f for f in expected if "deep" in f]
  assert files == expected and files
  for file in files:
    assert where.open_input_file(file).read() == Path(file).relative_to(tree).as_posix().encode()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_means_its_files_by_their_endings(tree, scheme):
  assert matching(f"{scheme}{tree}", (".txt",))[1] == [f"{tree}/a.txt", f"{tree}/b.txt"]
  assert len(matching(f"{scheme}{tree}")[1]) == 3


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_nothing_there_is_said(tree, scheme):
  with pytest.raises(UserError, match="no files at .*none.*Expected a file, a folder or a pattern"):
    matching(f"{scheme}{tree}/none*")
  with pytest.raises(UserError, match="no files at .*none/x"):
    matching(f"{scheme}{tree}/none/x")
  with pytest.raises(UserError, match=r"no files that end in .zip or .7z at"):
    matching(f"{scheme}{tree}", (".zip", ".7z"))
  with pytest.raises(UserError, match="Braces are not understood"):
    matching(f"{scheme}{tree}/{{a..b}}.txt")


def test_an_unknown_kind_of_uri_is_said():
  with pytest.raises(UserError, match="foo://x/y cannot be looked up: .*such as gs://BUCKET/NAME"):
    matching("foo://x/y")
