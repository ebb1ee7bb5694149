"""The documentation site: docstrings as its parser needs them, links of pages to source files."""

from pathlib import Path
import re
import runpy

import pytest

from markdown_pages import ROOT

pytest.importorskip("mkdocstrings")
HOOKS = runpy.run_path(str(ROOT / ".ci/mkdocs_hooks.py"))


def test_an_item_for_several_names_becomes_one_for_each():
  text = "Adds.\n\nArgs:\n  a, b: numbers,\n    maybe negative.\n  c: a third.\n\nNote, x: stays."
  assert HOOKS["split_items"](text) == (
    "Adds.\n\nArgs:\n  a: numbers,\n    maybe negative.\n  b: numbers,\n    maybe negative.\n"
    "  c: a third.\n\nNote, x: stays."
  )


def test_indented_blocks_are_fenced_outside_of_sections_only():
  text = "Shapes:\n\n  B  batch\n\n  E  embedding\nThen:\n\nReturns:\n  One.\n\n  Still that item."
  assert HOOKS["fence_indented"](text) == (
    "Shapes:\n\n```text\n  B  batch\n\n  E  embedding\n```\n\nThen:\n\nReturns:\n  One.\n\n"
    "  Still that item."
  )


@pytest.mark.parametrize(
  "link, on_site",
  [
    ("[x](../clip_jax/towers/vit.py)", "[x][clip_jax.towers.vit]"),
    ("[x](../clip_jax/train.py)", "[x](commands.md#train)"),
    ("[x](../CONTRIBUTING.md#a)", "[x](contributing.md#a)"),
    ("[x](study.md)", "[x](study.md)"),
    ("[`x[0]`](../tests/conftest.py)", "`x[0]`"),
    ("[x](nowhere.md)", "[x](nowhere.md)"),
    ("[x](https://arxiv.org/abs/2404.08197)", "[x](https://arxiv.org/abs/2404.08197)"),
  ],
)
def test_links_out_of_the_pages_lead_to_the_site(link, on_site):
  page = ROOT / "docs/walk.md"
  found = re.sub(HOOKS["LINK"], lambda m: HOOKS["_link"](m, page, Path("walk.md")), link)
  assert found == on_site


def test_images_outside_of_the_folder_of_pages_are_copied_to_the_site():
  assert "configs/logs/quickstart.png" in HOOKS["_images"]()
  assert not [name for name in HOOKS["_images"]() if name.startswith("docs/")]


def test_the_walk_visits_at_most_a_dozen_files_once():
  text = (ROOT / "docs/walk.md").read_text()
  files = re.findall(r"^### \d+\. .*\(\.\./(clip_jax/\S+\.py)\)$", text, re.M)
  assert 10 <= len(files) <= 12
  assert len(set(files)) == len(files)
