"""Questions to the pooled law in the user's words: model, pairs, samples, corpus and objective."""

import dataclasses
import json
import math
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.study import hyperparameters
from clip_jax.study.evidence import (
  CORPORA,
  METRICS,
  PAPER_BATCH,
  NoEvidence,
  Observation,
  pool_of,
)
from clip_jax.study.law_store import stored_law, updated_law
from clip_jax.study.model_shapes import ModelShape, model_shape, shape_from_totals
from clip_jax.study.own_runs import read_own_runs
from clip_jax.study.pooled_law import Forecast, PooledLaw

# Names of objectives on the command line -> (objective, method) of the law. CLIPA has no runs of
# its own in the tables.
OBJECTIVES = {
  "clip": ("clip", "CLIP"),
  "siglip": ("siglip", "CLIP"),
  "captioning": ("mammut", "CLIP"),
  "coca": ("coca", "CLIP"),
  "slip": ("clip", "SLIP"),
  "flip": ("clip", "FLIP"),
  "da": ("clip", "DA:RandAugment"),
}
# Short names of corpora. "laion" stands for the member of the family with about as many pairs.
_CORPUS_ALIASES = {
  "datacomp": "DataComp-1.4B",
  "relaion": "Re-LAION-1.4B",
  "re-laion": "Re-LAION-1.4B",
  "wit": "CLIP-WIT",
  "openai": "CLIP-WIT",
  "yfcc": "YFCC15M",
}
# Further than this from any run, in octaves, the law says nothing.
MAX_OCTAVES = 9.0
_BOUNDS = {"pairs": (1e5, 1e12), "samples": (1e5, 1e13)}
_OPENCLIP_BATCH = 88_000


@dataclasses.dataclass(frozen=True)
class Prediction:
  """A forecast and what was asked.

  Attributes:
    question: the question as an observation without accuracy.
    forecast: the forecast, after the penalty.
    penalty: rise of the log-odds of the error by hyperparameters other than the best.
    protocol: the hyperparameters that the forecast assumes, in words.
  """

  question: Observation
  forecast: Forecast
  penalty: float
  protocol: str

  def as_json(self) -> dict[str, Any]:
    """The answer for machines: numbers in percent."""
    q, f = self.question, self.forecast
    return {
      "metric": q.metric,
      "accuracy": round(f.accuracy, 3),
      "low": round(f.low, 3),
      "high": round(f.high, 3),
      "error": round(100 - f.accuracy, 3),
      "level": 0.9,
      "model": q.shape.name,
      "parameters": q.shape.parameters * 1e6,
      "forward_gflops": q.shape.forward_gflops,
      "corpus": q.corpus or "unknown",
      "unique_pairs": q.unique,
      "samples": q.samples,
      "objective": q.objective,
      "method": q.method,
      "quality": q.quality,
      "protocol": self.protocol,
      "penalty": round(self.penalty, 4),
      "octaves": round(f.octaves, 2),
      "nearest": {
        "source": f.nearest.source,
        "model": f.nearest.shape.name,
        "corpus": f.nearest.corpus,
        "samples": f.nearest.samples,
        "unique_pairs": f.nearest.unique,
        "accuracy": f.nearest.accuracy,
      },
    }


def corpus_named(name: str, pairs: float) -> str:
  """Name of a corpus as in `evidence.CORPORA`, from a short one.

  Raises:
    UserError: there is no such corpus.
  """
  text = name.strip().lower()
  if text in ("", "unknown", "other"):
    return ""
  if text == "laion":
    sizes = {c: n for c, (family, n, _) in CORPORA.items() if family == "LAION"}
    nearest = min(sizes, key=lambda c: abs(math.log(sizes[c] / pairs)))
    return nearest if abs(math.log(sizes[nearest] / pairs)) < math.log(1.3) else "LAION"
  known = {c.lower(): c for c in CORPORA} | _CORPUS_ALIASES
  if text not in known:
    raise UserError(
      f"There is no corpus {name!r}; known are {', '.join([*CORPORA, 'laion', 'datacomp'])}. "
      "Leave it out for data of another kind: the interval is then wider."
    )
  return known[text]


def question(
  shape: ModelShape,
  pairs: float,
  samples: float,
  *,
  corpus: str = "",
  objective: str = "clip",
  metric: str = "zero_shot",
  quality: float = 100.0,
  batch: float | None = None,
) -> Observation:
  """Builds a question.

  Args:
    shape: the model.
    pairs: number of distinct pairs, after any quality cut.
    samples: number of examples seen.
    corpus: name of a corpus, see `corpus_named`; "" if it is another.
    objective: name in `OBJECTIVES`.
    metric: name in `evidence.METRICS`.
    quality: percent of the corpus that is kept, best first.
    batch: batch size; by default the corpus' own protocol, which is tuned where it was tuned.

  Raises:
    UserError: a name is unknown, or a number is outside the range of the evidence.
  """
  if objective not in OBJECTIVES:
    raise UserError(
      f"There is no objective {objective!r}; the evidence is about {', '.join(OBJECTIVES)}."
    )
  if metric not in METRICS:
    raise UserError(f"There is no evidence about {metric!r}; the metrics are {', '.join(METRICS)}.")
  for name, value in (("pairs", pairs), ("samples", samples)):
    low, high = _BOUNDS[name]
    if not value > 0 or not math.isfinite(value):
      raise UserError(
        f"{name}={value:g} must be above 0; the evidence covers 1.28M to 34B samples of 2.9M to "
        "12.8B pairs."
      )
    if not low <= value <= high:
      raise NoEvidence(
        f"Nothing can be said about {name}={value:g}: the public runs have 1.28M to 34B samples of "
        f"2.9M to 12.8B pairs, and forecasts end at {low:g} and {high:g}. Train a few small runs "
        "of your own with python -m clip_jax.study run, or start from published weights."
      )
  if not 0 < quality <= 100:
    raise UserError(f"quality={quality:g} must be a percentage above 0 and at most 100.")
  kind, method = OBJECTIVES[objective]
  name = corpus_named(corpus, pairs)
  protocol, size = _protocol(name)
  steps = math.nan if protocol == "tuned" else samples / (batch or size)
  if method == "FLIP":
    steps /= 2
  unique = min(pairs, samples, pool_of(name))
  return Observation(
    name, protocol, kind, method, float(quality), unique, samples, steps, shape, metric
  )


def _protocol(corpus):
  if corpus == "WebLI":
    return "paper", PAPER_BATCH
  if corpus in ("LAION-80M", "LAION-400M", "LAION-2B", "CommonPool"):
    return "openclip", _OPENCLIP_BATCH if corpus.startswith("LAION") else 8192
  if corpus in ("CLIP-WIT", "YFCC15M", "CC3M", "CC12M"):
    return "openclip", 32_768 if corpus == "CLIP-WIT" else 4096
  return "tuned", math.nan


def predict(
  shape: ModelShape,
  pairs: float,
  samples: float,
  *,
  batch: float | None = None,
  learning_rate: float | None = None,
  warmup: float | None = None,
  law: PooledLaw | None = None,
  **rest: Any,
) -> Prediction:
  """Predicts the accuracy of a run.

  Args:
    shape, pairs, samples: as for `question`.
    batch, learning_rate, warmup: hyperparameters; by default the best, or the corpus' own.
    law: a law to use instead of the stored one.
    **rest: other arguments of `question`.

  Raises:
    UserError: a name or number is out of range.
    NoEvidence: no run is near enough.
  """
  for name, value in (("batch", batch), ("learning_rate", learning_rate), ("warmup", warmup)):
    if value is not None and not (value > 0 and math.isfinite(value)):
      raise UserError(f"{name}={value:g} must be above 0.")
  if batch is not None and batch > samples:
    raise UserError(f"batch={batch:g} is larger than the {samples:g} samples of the run.")
  asked = question(shape, pairs, samples, batch=batch, **rest)
  forecast = (law or stored_law(asked.metric))([asked])[0]
  if forecast.octaves > MAX_OCTAVES:
    raise NoEvidence(
      f"Nothing can be said about {shape.name} on {pairs:g} pairs and {samples:g} samples: the "
      f"nearest run is {forecast.octaves:.1f} octaves away."
    )
  given = [x for x in (batch, learning_rate, warmup) if x is not None]
  rise = 0.0
  if asked.protocol == "tuned" and given:
    size = batch or hyperparameters.recommend(samples, shape.parameters * 1e6).batch
    rise = hyperparameters.penalty(samples, shape.parameters * 1e6, size, learning_rate, warmup)
    forecast = _shifted(forecast, rise, METRICS[asked.metric][1])
  return Prediction(asked, forecast, rise, _in_words(asked, batch, learning_rate, warmup))


def _in_words(asked, batch, learning_rate, warmup):
  if asked.protocol == "tuned":
    if batch is learning_rate is warmup is None:
      return "batch, learning rate and warm-up tuned for this number of samples"
    given = (("batch", batch), ("learning rate", learning_rate), ("warm-up", warmup))
    return ", ".join(f"{n} {v:g}" for n, v in given if v is not None) + "; the rest tuned"
  size = asked.samples / asked.steps * (0.5 if asked.method == "FLIP" else 1)
  who = {"paper": "the paper's", "openclip": "the published runs'"}[asked.protocol]
  return f"batch {size:.0f} and {who} other hyperparameters"


def _shifted(forecast, rise, chance):
  """A forecast with the log-odds of the error raised; half of the rise is uncertain."""

  def moved(accuracy, by):
    share = np.clip((accuracy - chance) / (100 - chance), 1e-6, 1 - 1e-6)
    return float(chance + (100 - chance) / (1 + (1 - share) / share * math.exp(by)))

  return dataclasses.replace(
    forecast,
    accuracy=moved(forecast.accuracy, rise),
    low=moved(forecast.low, 1.5 * rise),
    high=moved(forecast.high, 0.5 * rise),
  )


def count_flag(name: str, text: str | None) -> float | None:
  """Parses a number such as 50M, 3.4B or 1e9; None stays None.

  Raises:
    UserError: it is not a number.
  """
  if text is None:
    return None
  units = {"k": 1e3, "M": 1e6, "B": 1e9}
  try:
    unit = units.get(text[-1:], 1)
    return float(text[:-1] if unit > 1 else text) * unit
  except ValueError:
    raise UserError(f"--{name}={text} is not a number, such as 50M, 3.4B or 1e9.") from None


def format_answer(answer: Prediction) -> str:
  """Formats an answer for the terminal."""
  q, f = answer.question, answer.forecast
  near = f.nearest
  lines = [
    f"{METRICS[q.metric][0]}: {f.accuracy:.1f}% [{f.low:.1f}, {f.high:.1f}]",
    f"  {q.shape.name}, {q.samples:.4g} samples of {q.unique:.4g} pairs of "
    f"{q.corpus or 'an unknown corpus'}; {answer.protocol}",
    f"  nearest run: {near.shape.name} on {near.corpus}, {near.samples:.4g} samples of "
    f"{near.unique:.4g} pairs, {near.accuracy:.1f}% ({near.source}), "
    f"{f.octaves:.1f} octaves away",
  ]
  if answer.penalty > 0.005:
    lines.append(
      f"  these hyperparameters multiply the odds of an error by {math.exp(answer.penalty):.2f}"
    )
  return "\n".join(lines)


def run_command(flags: Any) -> str:
  """Answers `study predict` for each metric; returns the text to print.

  Raises:
    UserError: a flag is missing or out of range.
  """
  missing = [n for n in ("pairs", "samples") if not getattr(flags, n)]
  if missing or not (flags.arch or (flags.parameters and flags.forward_gflops)):
    raise UserError(
      "predict needs --pairs, --samples, and --arch or both --parameters and --forward_gflops, as "
      "in --arch=ViT-B/32 --pairs=50M --samples=400M."
    )
  if flags.arch and (flags.parameters or flags.forward_gflops):
    raise UserError("Give --arch, or --parameters and --forward_gflops, but not both.")
  number = lambda name: count_flag(name, getattr(flags, name))
  if flags.arch:
    shape = model_shape(flags.arch)
  else:
    shape = shape_from_totals(number("parameters"), number("forward_gflops"))
  own = read_own_runs(flags.runs)
  answers = []
  for metric in (flags.metric or "zero_shot").split(","):
    law = updated_law(metric, tuple(own(metric))) if flags.runs else None
    answers.append(
      predict(
        shape,
        number("pairs"),
        number("samples"),
        corpus=flags.corpus or "",
        objective=flags.objective or "clip",
        metric=metric,
        quality=number("quality") if flags.quality else 100.0,
        batch=number("batch"),
        learning_rate=number("learning_rate"),
        warmup=number("warmup"),
        law=law,
      )
    )
  if flags.json:
    found = [answer.as_json() for answer in answers]
    return json.dumps(found[0] if len(found) == 1 else found, indent=2)
  return "\n".join(format_answer(answer) for answer in answers)
