"""Parses the documentation pages: fenced blocks, commands, inline code, links and headings."""

from pathlib import Path
import re
import shlex
import subprocess

ROOT = Path(__file__).parent.parent


def pages():
  """Returns the Markdown files of the repository, README.md first."""
  listed = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  # Without git, as in an unpacked archive, take all files except those of installed packages.
  names = listed.stdout.split() or [
    str(path.relative_to(ROOT))
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("build", "venv") for part in path.parts)
  ]
  return sorted((ROOT / name for name in names), key=lambda path: (path.name != "README.md", path))


def _split_fences(text):
  """Returns the lines outside fences, and (language, lines) of each fenced block."""
  outside, fenced, in_fence = [], [], False
  for line in text.splitlines(keepends=True):
    if line.startswith("```"):
      in_fence = not in_fence
      if in_fence:
        fenced.append((line[3:].strip(), []))
    else:
      (fenced[-1][1] if in_fence else outside).append(line)
  assert not in_fence, "a fence is not closed"
  return outside, fenced


def blocks(text, language=""):
  """Returns the fenced blocks in a language; blocks without a language are shell."""
  return ["".join(lines) for name, lines in _split_fences(text)[1] if name == language]


def prose(text):
  """Returns the page without its fenced blocks."""
  return "".join(_split_fences(text)[0])


def spans(text):
  """Returns all inline code, with line breaks replaced by spaces."""
  return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def commands(text):
  """Returns each command in shell blocks and inline code as a list of words."""
  shell = "\n".join(blocks(text)).replace("\\\n", " ")
  lines = [line for block in shell.splitlines() for line in block.split(" && ")]
  lines += [span for span in spans(text) if re.match(r"(python -m clip_jax|launch/\S+\.sh) ", span)]
  # Remove the brackets around optional flags, so that the flags are checked too.
  found = [
    shlex.split(re.sub(r"[\[\]](?= |$)|(?<= )\[", "", line), comments=True) for line in lines
  ]
  return [words for words in found if words]


def links(text):
  """Returns the targets of links and images."""
  return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def anchors(text):
  """Returns the anchors of the headings, as GitHub generates them."""
  titles = re.findall(r"^#+ +(.+)$", prose(text), re.M)
  return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}
