"""MkDocs hooks and a griffe extension for the documentation site; nothing here imports clip_jax.

The pages use two markers, each on a line of its own:

  <!-- modules: clip_jax.towers -->   the reference of every module of that package
  <!-- help: clip_jax.train -->       the help text of that command

Pages of the repository's root are added to the site, and links to files outside docs/ become links
to the reference, or plain text if the file is not on the site.
"""

import ast
import logging
import os
from pathlib import Path
import re
from typing import Any

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "clip_jax"
# Pages of the root, by their name on the site.
ROOT_PAGES = {
  "README.md": "index.md",
  "CONTRIBUTING.md": "contributing.md",
  "CHANGELOG.md": "changelog.md",
  "SECURITY.md": "security.md",
}
INTERNAL = ("benches", "cli")  # Packages without a page in the reference.
LINK = re.compile(r"(!?)\[([^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*)\]\(([^)\s]+)\)")
SECTION = re.compile(r"(Args|Arguments|Attributes|Examples?|Raises|Returns|Yields|Receives):$")

log = logging.getLogger("mkdocs.hooks.clip_jax")


def on_files(files: Any, *, config: Any) -> Any:
  """Adds the pages of the repository's root, and the images that they show from other folders."""
  for name, page in ROOT_PAGES.items():
    text = (ROOT / name).read_text(encoding="utf-8")
    files.append(File.generated(config, page, content=text))
  for name in _images():
    files.append(File.generated(config, _image(name), abs_src_path=str(ROOT / name)))
  _check_coverage()
  return files


def _images() -> list[str]:
  """Images outside of docs/ that a page shows, by their path in the repository."""
  found = set()
  for page in [*(ROOT / name for name in ROOT_PAGES), *sorted((ROOT / "docs").rglob("*.md"))]:
    for image, _, target in LINK.findall(page.read_text(encoding="utf-8")):
      path = Path(os.path.normpath(page.parent / target))
      if image and path.is_file() and ROOT / "docs" not in path.parents:
        found.add(path.relative_to(ROOT).as_posix())
  return sorted(found)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
  """Expands the markers of a page and rewrites its links."""
  markdown = re.sub(r"^<!-- modules: (\S+) -->$", lambda m: _modules(m[1]), markdown, flags=re.M)
  markdown = re.sub(r"^<!-- help: (\S+) -->$", lambda m: _help(m[1]), markdown, flags=re.M)
  sources = {page: name for name, page in ROOT_PAGES.items()}
  name = page.file.src_uri
  source = ROOT / sources[name] if name in sources else ROOT / "docs" / name
  return LINK.sub(lambda m: _link(m, source, Path(name)), markdown)


def _link(match: re.Match[str], source: Path, page: Path) -> str:
  """A link of the file `source`, as it has to be on the page `page` of the site."""
  image, text, target = match.groups()
  path, _, anchor = target.partition("#")
  there = Path(os.path.normpath(source.parent / path))
  if not path or "://" in target or not there.exists():
    return match[0]  # If it leads nowhere, the strict build reports it.
  name = there.relative_to(ROOT).as_posix()
  if name in ROOT_PAGES:
    on_site = ROOT_PAGES[name]
  elif image and not name.startswith("docs/"):
    on_site = _image(name)
  elif name.startswith("docs/") and there.is_file():
    on_site = name.removeprefix("docs/")
  elif f"<!-- help: {_module(there)} -->" in _pages("*.md"):
    command = there.parent if there.stem == "__main__" else there
    on_site, anchor = "commands.md", command.stem
  elif there.suffix == ".py" and not name.endswith("__.py") and _in_reference(there):
    return f"[{text}][{_module(there)}]"
  else:
    return text
  url = os.path.relpath(on_site, page.parent) + (f"#{anchor}" if anchor else "")
  return f"{image}[{text}]({url})"


def _pages(pattern: str) -> str:
  """The text of the pages that match, all in one."""
  return "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob(pattern))


def _in_reference(path: Path) -> bool:
  """Whether the reference shows a module, alone or with its package."""
  pages, module = _pages("api/*.md"), _module(path)
  package = ".".join(module.split(".")[:2])
  return f"::: {module}\n" in pages or f"<!-- modules: {package} -->" in pages


def _image(name: str) -> str:
  return "images/" + name.replace("/", "-")


def _module(path: Path) -> str:
  return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _modules(package: str) -> str:
  """A block of mkdocstrings for each module of a package, those of its own folder first."""
  folder = ROOT.joinpath(*package.split("."))
  found = [path for path in folder.rglob("*.py") if not path.name.startswith("__")]
  if not found:
    log.warning("There is no module in %s; is that package's page still right?", package)
  found.sort(key=lambda path: (path.parent != folder, path))
  return "\n\n".join(f"::: {_module(path)}" for path in found)


def _help(module: str) -> str:
  """The HELP constant of a command's module, read from its source."""
  path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
  for node in ast.parse(path.read_text(encoding="utf-8")).body:
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "HELP":
      return f"```text\n{ast.literal_eval(node.value).rstrip()}\n```"
  log.warning("%s has no HELP text.", module)
  return ""


def _check_coverage() -> None:
  """Warns of packages of clip_jax that no page of the reference shows."""
  for path in sorted(PACKAGE.glob("*/__init__.py")):
    folder = path.parent.name
    if folder not in INTERNAL and not _in_reference(path):
      log.warning("No page in docs/api shows the package clip_jax.%s.", folder)


class Docstrings(griffe.Extension):
  """Adapts docstrings to what griffe's parser and Markdown understand."""

  def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
    """Rewrites the docstring of one object."""
    if obj.docstring:
      obj.docstring.value = fence_indented(split_items(obj.docstring.value))


def split_items(text: str) -> str:
  """Turns an item for several names, `b1, b2: decay`, into one item for each name."""
  lines = []
  section = False
  names: list[str] = []
  item: list[str] = []

  def close_item():
    for name in names:
      lines.extend([f"  {name}: {item[0]}", *item[1:]])
    names.clear()
    item.clear()

  for line in text.splitlines():
    start = re.match(r"  (\S.*?): (.*)", line)
    if names and (line.startswith("    ") or not line.strip()):
      item.append(line)
      continue
    close_item()
    if line.strip() and not line.startswith("  "):
      section = bool(SECTION.match(line))
    if section and start and re.fullmatch(r"\w+(, \w+)+", start[1]):
      names.extend(start[1].split(", "))
      item.append(start[2])
    else:
      lines.append(line)
  close_item()
  return "\n".join(lines)


def fence_indented(text: str) -> str:
  """Puts fences around indented blocks that are not in a section such as `Args:`."""
  lines, block, section, blank = [], [], False, True

  def close_block():
    while block and not block[-1].strip():
      block.pop()
    if block:
      lines.extend(["```text", *block, "```", ""])
    block.clear()

  for line in text.splitlines():
    indented = line.startswith("  ")
    if block and (indented or not line.strip()):
      block.append(line)
      continue
    close_block()
    if not indented and line.strip():
      section = bool(SECTION.match(line))
    if indented and blank and not section:
      block.append(line)
    else:
      lines.append(line)
    blank = not line.strip()
  close_block()
  return "\n".join(lines)
