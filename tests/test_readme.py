"""The documentation pages: their commands are accepted, and their links and files exist."""

import ast
import importlib
import os
import re
import runpy
import shlex
import subprocess

from flax import nnx
import jax
import numpy as np
import pytest

from clip_jax.cli import flags as flags_lib
from clip_jax.config import build, call
from clip_jax.parallel.mesh import mesh_sizes
from clip_jax.study import grid as grid_lib
from markdown_pages import ROOT, anchors, blocks, commands, links, pages, spans

PAGES = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in pages()]
# Pages about this package; the others describe how files were made with other libraries.
GUIDES = [page for page in PAGES if page.values[0].parent in (ROOT, ROOT / "docs")]
# Values to substitute for the pages' placeholder F.
PLACEHOLDERS = {"--config": "configs/quickstart.py", "--grid": "configs/study/shapes.py"}
PAGES_WITH_CALLS = ("README.md", "docs/training.md", "docs/data.md", "docs/weights.md")
REPOSITORY = re.search(r'^REPOSITORY = "(.+?)"', (ROOT / "setup.py").read_text(), re.M)[1]
MODEL = ROOT / "tests/golden/clip_jax/0.1.0/open_clip"  # For the placeholder MODEL of a config.


class Parsed(Exception):
  """Raised by the command's parser to stop the command before it does any work."""


def fill_placeholder(word):
  """Returns a word of a command with its placeholder replaced by a file or a number."""
  flag, _, value = word.partition("=")
  # Tests of `init` and of `advise` use the configs that these write.
  if value in ("F", "mine/config.py", "recipe.py") and flag in PLACEHOLDERS:
    return f"{flag}={PLACEHOLDERS[flag]}"
  if flag == "--config" and value.endswith(":MODEL"):
    return f"{word.removesuffix('MODEL')}{MODEL}"
  return f"{flag}=1" if value == "N" and flag.startswith("--config.") else word


def parse_flags(module, words, monkeypatch):
  """Returns the flags as the command's own parser reads them, with the config loaded."""
  real = flags_lib.parse

  def parse(*arguments, **options):
    raise Parsed(real(*arguments, **options))

  monkeypatch.setattr(flags_lib, "parse", parse)
  monkeypatch.setattr(module, "parse", parse, raising=False)
  with pytest.raises(Parsed) as caught:
    module.main([fill_placeholder(word) for word in words])
  return caught.value.args[0]


def check_python(words, monkeypatch):
  """Checks that a command of the package exists and accepts its flags."""
  assert words[:2] == ["python", "-m"] and words[2].startswith(("clip_jax.", "tests.")), words
  module = importlib.import_module(words[2].removeprefix("tests."))
  if hasattr(module, "__path__"):
    module = importlib.import_module(f"{module.__name__}.__main__")
  values = parse_flags(module, words[3:], monkeypatch)
  if config := getattr(values, "config", None):
    mesh_sizes(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=256)
    build(config.train).total_steps(batch_size=config.data.batch_size, examples=10**9)
  if getattr(values, "grid", None):
    assert grid_lib.load(values.grid).runs


def check_peer(words):
  """Checks that the script of a comparison with another library accepts its flags."""
  runpy.run_path(str(ROOT / words[1]))["parse_arguments"](words[2:])


def check_script(words):
  """Checks that a launch script accepts its arguments in a dry run."""
  script, *arguments = words
  arguments = [word for word in map(fill_placeholder, arguments) if word != "--dry-run"]
  ran = subprocess.run(
    [ROOT / script, "--dry-run", *arguments],
    cwd=ROOT,
    text=True,
    capture_output=True,
    env={**os.environ, "POLL": "0"},
    timeout=60,
  )
  assert ran.returncode == 0, ran.stdout + ran.stderr
  assert re.search(r"clip_jax\.(train|bench)", ran.stdout)


def extras():
  """Returns the names of the package's extras, from setup.py."""
  tree = ast.parse((ROOT / "setup.py").read_text())
  (table,) = (
    node.value
    for node in tree.body
    if isinstance(node, ast.Assign) and node.targets[0].id == "EXTRAS"
  )
  return {"test", *(key.value for key in table.keys)}


def check_install(words):
  """Checks that a pip command names only extras that this package has."""
  assert words[:2] == ["pip", "install"], words
  if named := re.search(r"\[(.*)\]", words[-1]):
    assert set(named[1].split(",")) <= extras(), words


@pytest.mark.parametrize("page", GUIDES)
def test_every_command_is_accepted(page, monkeypatch):
  for words in commands(page.read_text()):
    print(words)  # Identifies the command if the check fails.
    if words[0] == "clip-jax" and not words[1].startswith("-"):
      words = ["python", "-m", f"clip_jax.{words[1]}", *words[2:]]
    if words[0] == "python" and words[1].startswith("tests/peers/"):
      check_peer(words)
    elif words[0] == "python":
      if any(word.endswith("stored_features.py:features") for word in words):
        continue  # It reads what the command before it writes; the tests of `embed` run both.
      with monkeypatch.context() as patched:
        check_python(words, patched)
    elif words[0].startswith("launch/"):
      check_script(words)
    elif words[0] == "pip":
      check_install(words)
    elif words[0].startswith(".ci/"):
      assert os.access(ROOT / words[0], os.X_OK)
    else:
      clone = ["git", "clone", REPOSITORY, "scaling-clip-jax"]
      known = (["pytest"], ["pytest", "-m", "slow"], clone, ["cd", clone[-1]])
      assert words in known, f"unknown command {words}"


def test_the_pages_have_commands_and_a_wrong_one_is_detected(monkeypatch):
  assert len(commands((ROOT / "README.md").read_text())) > 10
  assert sum(len(commands(page.values[0].read_text())) for page in GUIDES) > 80
  with pytest.raises(Exception, match="Did you mean --workdir?"):
    check_python(["python", "-m", "clip_jax.train", "--config=F", "--workdri=D"], monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_broken(page):
  for target in links(page.read_text()):
    if re.match(r"https?://|mailto:", target):
      continue
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists(), f"{page.name} links to {target}"
    assert file == ROOT or ROOT in file.parents, f"{target} is outside the repository"
    if anchor and file.suffix == ".md":
      assert anchor in anchors(file.read_text()), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_named_on_a_page_exists(page):
  for span in spans(page.read_text()):
    if re.fullmatch(r"(clip_jax|configs|tests|launch|docs)/[\w./-]*", span):
      assert (ROOT / span).exists(), f"{page.name} names {span}"


@pytest.mark.parametrize("page", GUIDES)
def test_every_config_flag_exists(page, monkeypatch):
  """Config flags that appear alone in the text, such as `--config.train.microbatches=64`."""
  for span in spans(page.read_text()):
    if span.startswith("--config."):
      with monkeypatch.context() as patched:
        check_python(["python", "-m", "clip_jax.train", "--config=F", *shlex.split(span)], patched)


def test_the_first_screen_of_the_readme_has_the_two_commands():
  lines = (ROOT / "README.md").read_text().splitlines()
  assert len(lines) < 250
  commands = [words for words in lines[:30] if words.startswith(("git clone", "pip install"))]
  assert commands[0].startswith(f"git clone {REPOSITORY} ") and commands[1:] == [
    "pip install -e . && python -m clip_jax.train --config=configs/quickstart.py "
    "--workdir=/tmp/quickstart",
    "pip install -e '.[test]' && pytest",
  ]


def test_the_python_example_of_the_readme_runs(capsys):
  (block,) = blocks((ROOT / "README.md").read_text(), "python")
  model = ROOT / "tests/golden/huggingface_clip"
  exec(re.sub('"/tmp/quickstart".*', f"{str(model)!r})", block), {})
  printed = re.findall(r"^([\d.]+)%  (.+)$", capsys.readouterr().out, re.M)
  assert [label for _, label in printed] == ["a flag", "an animal", "a face"]
  assert abs(sum(float(p) for p, _ in printed) - 100) < 0.2


def test_the_python_example_of_the_evaluation_page_runs():
  """Checks each result against the shape in its comment."""
  block = next(b for b in blocks((ROOT / "docs/evaluation.md").read_text(), "python"))
  names = {}
  model = ROOT / "tests/golden/huggingface_clip"
  checked = 0
  for line in block.replace("/tmp/quickstart", str(model)).splitlines():
    code, _, comment = line.partition("#")
    if not comment or "=" in code.partition("(")[0]:
      exec(code, names)
    else:
      found = eval(code, names)
      if shape := re.search(r"float32 \[(\d), (\d)\]", comment):
        assert found.dtype == np.float32 and found.shape == tuple(map(int, shape.groups()))
        checked += 1
  assert checked == 2
  for z, rows in ((names["z_text"], 1), (names["z_image"], 2)):
    assert z.shape == (rows, z.shape[1]) and z.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)


def namespace():
  """Returns every class and function that a config may call by name, as well as `call`."""
  found = {"call": call}
  for folder in ("towers", "objectives", "data", "augment", "evaluators"):
    for path in sorted((ROOT / "clip_jax" / folder).rglob("[a-z]*.py")):
      module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
      found |= {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
      }
  return found


def test_the_calls_on_the_pages_can_be_built():
  """Calls in code blocks, such as image=call(Vit, size="B"), and in the text and tables."""
  known = namespace()
  text = "\n".join((ROOT / page).read_text() for page in PAGES_WITH_CALLS)
  lines = [
    line
    for block in blocks(text, "python")
    if re.match(r"\w+=call", block)
    for line in re.split(r"^(?=\w+=)", block, flags=re.M)
    if line
  ]
  lines += [
    span if "=" in span.partition("(")[0] else f"part={span}"
    for span in spans(text)
    if re.match(r"(\w+=)?call\(\w", span)
  ]
  assert len(lines) >= 30
  for line in lines:
    arguments = eval(f"dict({line}\n)", dict(known))
    for name in {"image", "text"} & set(arguments):
      tower = jax.eval_shape(lambda spec=arguments[name]: build(spec, rngs=nnx.Rngs(0)))
      assert tower.width > 0
