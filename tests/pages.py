"""What the pages say: their fenced blocks, commands, spans of code, links and headings."""

from pathlib import Path
import re
import shlex
import subprocess

ROOT = Path(__file__).parent.parent


def pages():
  """The Markdown files of the repository, README.md first."""
  listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
                          cwd=ROOT, capture_output=True, text=True)
  # Without git, as in an unpacked archive, all there are; but for those of what is installed.
  names = listed.stdout.split() or [
      str(path.relative_to(ROOT)) for path in ROOT.rglob("*.md")
      if not any(part.startswith(".") or part in ("build", "venv") for part in path.parts)]
  return sorted((ROOT / name for name in names), key=lambda path: (path.name != "README.md", path))


def _taken_apart(text):
  """The lines outside of fences, and (language, lines) of each fenced block."""
  outside, fenced, inside = [], [], False
  for line in text.splitlines(keepends=True):
    if line.startswith("```"):
      inside = not inside
      if inside:
        fenced.append((line[3:].strip(), []))
    else:
      (fenced[-1][1] if inside else outside).append(line)
  assert not inside, "a fence is not closed"
  return outside, fenced


def blocks(text, language=""):
  """The fenced blocks in a language; those without a language are shell."""
  return ["".join(lines) for name, lines in _taken_apart(text)[1] if name == language]


def prose(text):
  """The page without its fenced blocks."""
  return "".join(_taken_apart(text)[0])


def spans(text):
  """Inline code, a line break in it read as a space."""
  return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def commands(text):
  """Every command of the shell blocks and of inline code, as lists of words."""
  shell = "\n".join(blocks(text)).replace("\\\n", " ")
  lines = [line for block in shell.splitlines() for line in block.split(" && ")]
  lines += [span for span in spans(text) if re.match(r"(python -m clip_jax|launch/\S+\.sh) ", span)]
  # Brackets are around what may be left out; it is a flag all the same.
  found = [shlex.split(re.sub(r"[\[\]](?= |$)|(?<= )\[", "", line), comments=True)
           for line in lines]
  return [words for words in found if words]


def links(text):
  """The targets of links and images."""
  return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def anchors(text):
  """What #... may follow the page's address: headings as GitHub names them."""
  titles = re.findall(r"^#+ +(.+)$", prose(text), re.M)
  return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}
