"""The notebook: every cell runs, and the committed outputs are complete."""

import importlib.util
import os
from pathlib import Path
import re

from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "launch/colab.ipynb"
SETUP = (ROOT / "setup.py").read_text()


def read():
  return nbformat.read(NOTEBOOK, 4)


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook):
  """Returns the parameters cell, which the test replaces for a short run."""
  (cell,) = (c for c in code(notebook) if "parameters" in c.metadata.get("tags", ()))
  return cell


def executed(notebook, folder):
  """Runs all cells as in a checkout; raises if a cell or a shell command in it fails."""
  for cell in code(notebook):
    if re.search(r"^!", cell.source, re.MULTILINE):  # IPython ignores a failing shell command.
      cell.source += "\nassert not _exit_code, f'the command ended with {_exit_code}'"
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XDG_CACHE_HOME": str(folder / "cache"),
    "IPYTHONDIR": str(folder / "ipython"),
  }
  client = NotebookClient(
    notebook,
    timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(NOTEBOOK.parent)}},
  )
  client.execute(env=environment)
  return notebook


def printed(cells):
  return "".join(
    o.get("text", "") + o.get("data", {}).get("text/plain", "")
    for cell in cells
    for o in cell.outputs
  )


def pictures(cells):
  return sum(
    any(kind.startswith("image/") for kind in o.get("data", ()))
    for cell in cells
    for o in cell.outputs
  )


def test_every_cell_runs(tmp_path):
  notebook = read()
  parameters(notebook).source = f"STEPS, RUNS = 4, {str(tmp_path / 'runs')!r}"
  cells = code(executed(notebook, tmp_path))
  output, committed = printed(cells), code(read())
  for run, objective in {"clip": "Clip", "margin": "Margin"}.items():
    assert f"objective  {objective} on batches of 128" in output
    # One checkpoint from before each evaluation; the newest two are kept.
    saved = [p.name for p in (tmp_path / "runs" / run / "checkpoints").iterdir()]
    assert sorted(name for name in saved if name.isdigit()) == ["3", "4"]
  assert "Using the model from above." in output and "Recommended: " in output
  assert len(re.findall(rf"^0\.\d+  {tmp_path}/runs/pictures/\d+\.webp\r?$", output, re.M)) == 5
  assert [pictures([cell]) for cell in cells] == [pictures([cell]) for cell in committed]


@pytest.mark.parametrize(
  "line, message",
  [
    ("1 / 0", "ZeroDivisionError"),
    ("!{sys.executable} -m clip_jax.search --model=nothing --images=. cat", "ended with 2"),
    ("%no_such_magic", "UsageError"),
  ],
)
def test_an_error_in_a_cell_is_raised(line, message, tmp_path):
  notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import sys\n" + line)])
  with pytest.raises(CellExecutionError, match=message):
    executed(notebook, tmp_path)


@pytest.mark.parametrize("wheel", ["", "scaling_clip_jax-0.1.0-py3-none-any.whl"])
def test_a_missing_package_is_installed_by_name_or_from_an_uploaded_wheel(
  wheel, tmp_path, monkeypatch, capsys
):
  """Runs the branch for Colab, with a fake IPython shell that records the commands."""
  cell = next(c for c in code(read()) if "%pip install" in c.source)
  asked = []

  class Shell:
    def run_line_magic(self, name, line):
      asked.append((name, line))

  if wheel:
    (tmp_path / wheel).touch()
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.chdir(tmp_path)
  exec(TransformerManager().transform_cell(cell.source), {"get_ipython": Shell})
  # IPython fills in the braces.
  assert asked == [("pip", 'install -q "{package}[figures,hub]"')]
  assert (
    f"Installing {tmp_path / wheel if wheel else 'scaling-clip-jax'}\n" in capsys.readouterr().out
  )
  for extra in ("figures", "hub"):
    assert f'"{extra}": ' in (ROOT / "setup.py").read_text()


def test_the_badge_is_there_once_the_repository_has_an_address():
  address = re.search(r'^REPOSITORY = "https://github.com/(.+)"', SETUP, re.M)[1]
  badge = f"https://colab.research.google.com/github/{address}/blob/main/launch/colab.ipynb"
  for text in (read().cells[0].source, (ROOT / "README.md").read_text()):
    assert (badge in text) == (not address.startswith("OWNER/")), f"expected {badge}"
  assert f"git clone https://github.com/{address} " in (ROOT / "README.md").read_text()


def test_the_committed_notebook_has_complete_outputs():
  notebook = read()
  cells = code(notebook)
  assert NOTEBOOK.stat().st_size < 400_000
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  outputs = [o for cell in cells for o in cell.outputs]
  assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
  assert pictures(cells) >= 5 and "Recommended: " in printed(cells)
  runs = re.search(r'RUNS = "(.*?)"', parameters(notebook).source)[1]
  for path in re.findall(r"(?<![\w.:/])/\w[\w./-]*", printed(cells)):
    assert path.startswith(runs), f"{path} is a path on the machine that ran the notebook"


def test_links_are_not_broken():
  text = "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
  targets = [t for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
  assert targets and all((NOTEBOOK.parent / target).is_file() for target in targets)


def test_cells_are_short_and_follow_a_text_cell():
  notebook = read()
  for before, cell in zip(notebook.cells, notebook.cells[1:]):
    lines = cell.source.splitlines()
    assert len(lines) <= 27 and max(map(len, lines)) <= 104, cell.source
    assert "markdown" in (before.cell_type, cell.cell_type) or len(lines) <= 12
