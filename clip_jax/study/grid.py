"""A grid: complete configs by name, each a change of one base; a Python file with get_grid()."""

from collections.abc import Mapping, Sequence
import copy
import dataclasses
import hashlib
import importlib.util
import inspect
from pathlib import Path
import re
from typing import Any

from ml_collections.config_dict import ConfigDict

from clip_jax.config import to_json
from clip_jax.errors import UserError

FACTORS = ("data", "protocol", "arch", "method", "aug", "quality")
PROTOCOLS = ("one epoch", "same samples", "epochs", "same compute")


@dataclasses.dataclass(frozen=True)
class Run:
  """One point of a grid.

  Attributes:
    name: letters, digits and -_.+ only: it is a folder's name.
    config: complete, of a training run.
    factors: what was varied, by the names in `FACTORS`: `data` ("webli"), `protocol` (one of
      `PROTOCOLS`), `arch` ("ViT-B/32"), `method` ("CLIP"), `aug` ("none"), `quality` (percent of
      the pool that was kept, 100.0 for all).
  """
  name: str
  config: ConfigDict
  factors: Mapping[str, Any]

  @property
  def fingerprint(self) -> str:
    """Twelve digits that are another config's only by chance."""
    return hashlib.sha256(to_json(self.config).encode()).hexdigest()[:12]

  @property
  def folder(self) -> str:
    """Name of the run's folder: a config that changed is another run."""
    return f"{self.name}-{self.fingerprint}"


@dataclasses.dataclass(frozen=True)
class Grid:
  """Runs, and which of their final metrics is which column of runs.csv.

  Attributes:
    runs: no two of one name.
    columns: a name in `records.METRICS` -> "evaluator/metric" of `final_evaluators`.
  """
  runs: Sequence[Run]
  columns: Mapping[str, str]

  def __post_init__(self) -> None:
    names = [run.name for run in self.runs]
    if not names:
      raise UserError("The grid has no runs. Let get_grid() return at least one.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
      raise UserError(f"Runs of a grid need names of their own; there are two called {twice[0]}.")
    for run in self.runs:
      if not re.fullmatch(r"[\w.+-]+", run.name):
        raise UserError(f"Run name {run.name!r} is to be a folder's name: letters, digits and "
                        "-_.+ only.")
      if set(run.factors) != set(FACTORS) or run.factors["protocol"] not in PROTOCOLS:
        raise UserError(f"Run {run.name} has factors {dict(run.factors)}; wanted are "
                        f"{', '.join(FACTORS)}, and a protocol out of {', '.join(PROTOCOLS)}.")


def changed(config: ConfigDict, **changes: Any) -> ConfigDict:
  """A copy with values replaced: `changed(base, seed=1, data__size="1M")`."""
  config = copy.deepcopy(config)
  with config.unlocked():
    for path, value in changes.items():
      *parents, name = path.split("__")
      section = config
      for parent in parents:
        section = section[parent]
      if name not in section:
        raise UserError(f"The config has no {path.replace('__', '.')} to change; beside it are "
                        f"{', '.join(section)}.")
      section[name] = value
  return config


def load(where: str) -> Grid:
  """The grid of "FILE.py" or "FILE.py:ARGUMENT".

  Raises:
    UserError: no such file, or one without a get_grid() that takes what is given.
  """
  path, _, argument = where.partition(":")
  if not Path(path).is_file():
    there = sorted(p.name for p in Path(path).parent.glob("*.py"))
    raise UserError(f"There is no grid file {path}. In {Path(path).parent} there are: "
                    f"{', '.join(there) or 'none'}.")
  spec = importlib.util.spec_from_file_location(f"grid_{Path(path).stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_grid"):
    raise UserError(f"{path} has no get_grid(), so it is not a grid. A config is trained by "
                    f"python -m clip_jax.train --config={path}.")
  if argument and not inspect.signature(module.get_grid).parameters:
    raise UserError(f"get_grid() of {path} takes no argument, and {argument!r} was given.")
  return module.get_grid(*([argument] if argument else []))
