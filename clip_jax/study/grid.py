"""A grid of runs: named, complete configs. A grid file is a Python file that has get_grid()."""

from collections.abc import Mapping, Sequence
import copy
import dataclasses
import hashlib
import re
from typing import Any

from ml_collections.config_dict import ConfigDict

from clip_jax.cli.config_files import load_function
from clip_jax.config import to_json
from clip_jax.errors import UserError

FACTORS = ("data", "protocol", "arch", "method", "aug", "quality")
PROTOCOLS = ("one epoch", "same samples", "epochs", "same compute")


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a grid.

  Attributes:
    name: unique in the grid; letters, digits and -_.+ only, because it names a folder.
    config: complete training config.
    factors: the values of the factors in `FACTORS`: `data` ("webli"), `protocol` (one of
      `PROTOCOLS`), `arch` ("ViT-B/32"), `method` ("CLIP"), `aug` ("none"), `quality` (percent of
      the pool that is kept, 100.0 for all).
  """

  name: str
  config: ConfigDict
  factors: Mapping[str, Any]

  @property
  def fingerprint(self) -> str:
    """The first 12 hex digits of the config's SHA-256."""
    return hashlib.sha256(to_json(self.config).encode()).hexdigest()[:12]

  @property
  def folder(self) -> str:
    """Name of the run's folder. It contains the fingerprint, so a changed config is a new run."""
    return f"{self.name}-{self.fingerprint}"


@dataclasses.dataclass(frozen=True)
class Grid:
  """Runs, and the final metrics that go into the columns of runs.csv.

  Attributes:
    runs: the runs, with unique names.
    columns: a name in `runs_table.METRICS` -> "evaluator/metric" of `final_evaluators`.
  """

  runs: Sequence[Run]
  columns: Mapping[str, str]

  def __post_init__(self) -> None:
    names = [run.name for run in self.runs]
    if not names:
      raise UserError("The grid has no runs. get_grid() must return at least one.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
      raise UserError(f"Run names must be unique in a grid; two or more runs are named {twice[0]}.")
    for run in self.runs:
      if not re.fullmatch(r"[\w.+-]+", run.name):
        raise UserError(
          f"Run name {run.name!r} cannot name a folder; use letters, digits and -_.+ only."
        )
      if set(run.factors) != set(FACTORS) or run.factors["protocol"] not in PROTOCOLS:
        raise UserError(
          f"Run {run.name} has factors {dict(run.factors)}; it needs exactly "
          f"{', '.join(FACTORS)}, and a protocol out of {', '.join(PROTOCOLS)}."
        )


def with_changes(config: ConfigDict, **changes: Any) -> ConfigDict:
  """Returns a copy with some values replaced, as in `with_changes(base, seed=1, data__size="1M")`.

  Raises:
    UserError: a name is not in the config.
  """
  config = copy.deepcopy(config)
  with config.unlocked():
    for path, value in changes.items():
      *parents, name = path.split("__")
      section = config
      for parent in parents:
        section = section[parent]
      if name not in section:
        raise UserError(
          f"The config has no {path.replace('__', '.')}; this section has {', '.join(section)}."
        )
      section[name] = value
  return config


def load(where: str) -> Grid:
  """Loads the grid of "FILE.py" or "FILE.py:ARGUMENT".

  Raises:
    UserError: the file does not exist, has no get_grid(), or does not take the argument.
  """
  return load_function(
    where,
    "get_grid",
    "grid",
    f" So it is not a grid. If it is a config, train it with clip-jax train --config={where}.",
  )()
