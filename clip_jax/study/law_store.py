"""The fitted laws that come with the package, and how they are fitted anew.

`python -m clip_jax.study fit --out=clip_jax/study/reference/law.json` fits the pooled law to every
metric and stores its parameters with the digest of the tables, so that predictions start at once.
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.cli.formatting import table
from clip_jax.cli.progress import Progress, log
from clip_jax.errors import UserError
from clip_jax.files import atomic_write
from clip_jax.study import hyperparameters, tables
from clip_jax.study.evidence import METRICS, NoEvidence, Observation, observations
from clip_jax.study.pooled_law import PooledLaw

STORED = tables.REFERENCE / "law.json"
_FORMAT = 1


def fit_laws() -> dict[str, PooledLaw]:
  """Fits the law of each metric, around that of ImageNet zero-shot."""
  metrics = ["zero_shot", *(m for m in METRICS if m != "zero_shot" and observations(m))]
  progress = Progress(len(metrics), log, "metrics", last=False)
  found: dict[str, PooledLaw] = {}
  for metric in metrics:
    found[metric] = PooledLaw(metric, observations(metric), prior=found.get("zero_shot"))
    progress.add(1)
  return found


def format_laws(laws: dict[str, PooledLaw]) -> str:
  """Formats the common parameters of the laws as a table for the terminal."""
  rows = []
  for metric, law in laws.items():
    miss = [abs(f.accuracy - r.accuracy) for f, r in zip(law(law.runs), law.runs)]
    at = {key.partition(" (")[0]: value for key, value in law.theta.items()}
    common = lambda name: at[f"common: {name}"]
    rows.append(
      (
        metric,
        len(law.runs),
        f"{sum(miss) / len(miss):.2f}",
        f"{np.exp(common('beta')):.2f}",
        f"{np.exp(common('eps')):.2f}",
        f"{-common('image size in A'):.2f}",
        f"{np.exp(common('repeats')):.1f}",
      )
    )
  header = ("metric", "runs", "error", "beta", "eps", "image size", "R at 100M pairs")
  return table(rows, header)


def write_laws(laws: dict[str, PooledLaw], path: Path) -> None:
  """Writes parameters and noise of the laws, and the digest of the tables, as JSON."""
  stored = {
    "format": _FORMAT,
    "digest": tables.digest(),
    "hyperparameters": hyperparameters.fit_rule(),
    "laws": {
      metric: {
        "theta": {key: round(value, 5) for key, value in law.theta.items() if abs(value) > 5e-6},
        "noise": {group: round(value, 4) for group, value in law.noise.items()},
      }
      for metric, law in laws.items()
    },
  }
  with atomic_write(path) as file:
    file.write(json.dumps(stored, indent=0) + "\n")


@functools.cache
def stored() -> dict[str, Any]:
  """Reads the stored parameters.

  Raises:
    UserError: they are missing, or belong to other tables.
  """
  way_out = f"Fit them: python -m clip_jax.study fit --out={STORED}"
  if not STORED.is_file():
    raise UserError(f"There is no {STORED} with the parameters of the law. {way_out}")
  found = json.loads(STORED.read_text(encoding="utf-8"))
  if found.get("format") != _FORMAT or found.get("digest") != tables.digest():
    raise UserError(f"{STORED} was fitted to other tables than those next to it. {way_out}")
  return found


@functools.cache
def stored_law(metric: str) -> PooledLaw:
  """The law of a metric, with the stored parameters.

  Raises:
    UserError: there is no such metric.
    NoEvidence: no public run has it.
  """
  if metric not in METRICS:
    raise UserError(f"There is no evidence about {metric!r}; the metrics are {', '.join(METRICS)}.")
  if metric not in stored()["laws"]:
    raise NoEvidence(
      f"No public run has {METRICS[metric][0]}; give runs of your own that do, as in "
      "--runs=DIR/runs.csv."
    )
  one = stored()["laws"][metric]
  return PooledLaw(metric, observations(metric), one["theta"], one["noise"])


def updated_law(metric: str, runs: tuple[Observation, ...]) -> PooledLaw:
  """The law of a metric, fitted to the evidence of the package and to other runs."""
  prior = None if metric == "zero_shot" else stored_law("zero_shot")
  return PooledLaw(metric, (*observations(metric), *runs), prior=prior)
