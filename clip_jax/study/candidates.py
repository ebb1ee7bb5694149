"""Recipes that could be trained, published models to start from, and what small runs say."""

from collections.abc import Sequence
import dataclasses
import functools
import math

from clip_jax.study.accelerators import PEAKS, UTILISATION
from clip_jax.study.evidence import METRICS, Observation, observations
from clip_jax.study.forecasts import OBJECTIVES
from clip_jax.study.model_shapes import ModelShape, known_shapes
from clip_jax.study.pooled_law import Forecast
from clip_jax.study.tables import read_table

# Models that are candidates, and the image towers of this package that they are.
VITS = ("S-32", "S-16", "M-32", "M-16", "B-32", "B-16", "L-32", "L-16", "L-14", "H-14")
# Objective -> FLOPs of a sample against CLIP's: SLIP embeds three images and one text; FLIP drops
# half of the patches; captioning models need a decoder, see `_flops`.
_TIMES_IMAGE = {"slip": 3.0, "flip": 0.5}
# Objectives that this package has no config for; they are forecast for comparison.
FORECAST_ONLY = ("captioning",)
_CUTS = (100.0, 60.0, 40.0)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A model, an objective and a quality cut.

  Attributes:
    shape: the model.
    objective: name in `forecasts.OBJECTIVES`.
    quality: percent of the pairs that are kept, best first.
    flops: training FLOPs of one sample.
    run: name of a run of yours with this model and objective; "" for a model of the package.
  """

  shape: ModelShape
  objective: str
  quality: float
  flops: float
  run: str = ""

  @property
  def name(self) -> str:
    """Model, objective and quality cut."""
    label = {"clip": "CLIP", "siglip": "SigLIP", "slip": "SLIP", "flip": "FLIP"}
    label |= {"da": "CLIP with RandAugment", "captioning": "captioning (MaMMUT)", "coca": "CoCa"}
    if self.run:
      label["da"] = "CLIP with augmentation"
    vit = "ViT-" + self.shape.name.replace("-", "/", 1)
    model = vit if self.shape.name in VITS else self.shape.name
    cut = "" if self.quality == 100 else f", best {self.quality:g}% of the pairs"
    return f"{model}, {label[self.objective]}{cut}"

  @property
  def least_epochs(self) -> float:
    """Smallest number of epochs for which there is evidence that the objective helps."""
    return 2.0 if self.objective == "da" else 1.0

  @property
  def trainable(self) -> bool:
    """Whether there is a config for it: in this package, or that of your run."""
    return bool(self.run) or (self.objective not in FORECAST_ONLY and self.shape.name in VITS)

  def observation(
    self, metric: str, corpus: str, unique: float, samples: float, own: bool
  ) -> Observation:
    """The question to the law with tuned hyperparameters; `own` for data of your own runs."""
    kind, method = OBJECTIVES[self.objective]
    return Observation(
      corpus,
      "own" if own else "tuned",
      kind,
      method,
      self.quality,
      unique,
      samples,
      math.nan,
      self.shape,
      metric,
    )


def candidates() -> list[Candidate]:
  """Each of `VITS` with each objective, and with the quality cuts for CLIP and SigLIP."""
  found = []
  for shape in (known_shapes()[name] for name in VITS):
    for objective in ("clip", "siglip", "captioning", "slip", "flip", "da"):
      flops = _flops(shape, objective)
      if flops is not None:
        # Cuts were measured with plain CLIP only.
        cuts = _CUTS if objective in ("clip", "siglip") else _CUTS[:1]
        found += [Candidate(shape, objective, quality, flops) for quality in cuts]
  return found


def own_candidates(runs: Sequence[Observation]) -> list[Candidate]:
  """The models of your own runs, with the objectives and quality cuts that some of them have."""
  known = {pair: name for name, pair in reversed(OBJECTIVES.items())}
  known |= {("clip", f"DA:{aug}"): "da" for aug in ("crop&flip", "stacked RandAugment")}
  name = lambda run: known.get((run.objective, run.method))
  objectives = dict.fromkeys(name(run) for run in runs if name(run))
  found = []
  for shape in {run.shape.name: run.shape for run in runs}.values():
    for objective in objectives:
      own = [r for r in runs if r.shape.name == shape.name and name(r) == objective]
      if own:
        cuts = sorted({r.quality for r in own} | {100.0}, reverse=True)
        flops, where = _flops(shape, objective), own[-1].source.removeprefix("your run ")
        found += [Candidate(shape, objective, quality, flops, where) for quality in cuts]
  return found


@functools.cache
def _captioning_gflops():
  return {
    row["model"]: float(row["forward_gflops"])
    for row in read_table("tuned_models.csv")
    if row["objective"] == "mammut"
  }


def _flops(shape, objective):
  """Training FLOPs of one sample: three times those of the forward pass. None if unknown."""
  if objective == "captioning":
    gflops = _captioning_gflops().get(shape.name)
    return None if gflops is None else 3e9 * gflops
  image = min(2e-3 * shape.image_parameters * shape.tokens, 0.95 * shape.forward_gflops)
  gflops = shape.forward_gflops + image * (_TIMES_IMAGE.get(objective, 1.0) - 1)
  return 3e9 * gflops


def starts(metric: str, best: Forecast | None) -> list[str]:
  """Published models that are better than the best recipe, in words; the best two of each size."""
  found = {}
  for run in observations(metric):
    if run.protocol == "openclip" and run.corpus in ("LAION-2B", "CLIP-WIT"):
      key = run.shape.name
      if key not in found or run.accuracy > found[key].accuracy:
        found[key] = run
  above = sorted(
    (r for r in found.values() if best is None or r.accuracy > best.accuracy),
    key=lambda r: r.shape.forward_gflops,
  )
  title = METRICS[metric][0]
  return [
    f"ViT-{r.shape.name.replace('-', '/', 1)} trained on {r.corpus}: {title} {r.accuracy:.1f}% "
    f"without any training of yours ({r.source})"
    for r in above[:3]
  ]


def published_recipes(metric: str, compute: float | None) -> list[str]:
  """Recipes with a published number that a budget buys, best first, in words."""
  found = []
  for row in read_table("published_recipes.csv"):
    flops = float(row["chip_hours"]) * 3600 * PEAKS[row["accelerator"]] * UTILISATION
    if row["metric"] == metric and compute and flops <= compute:
      needs = f"; needs {row['needs']}" if row["needs"] else ""
      config = f"; configs/{row['config']}" if row["config"] else ""
      found.append(
        (
          float(row["percent"]),
          f"{row['recipe']}: {row['percent']}% for {row['chip_hours']} {row['accelerator']}-hours"
          f"{needs}{config} ({row['source']})",
        )
      )
  return [text for _, text in sorted(found, reverse=True)[:3]]


def miniature(pairs: float) -> list[str]:
  """Best strategies of the miniature study at the nearest number of pairs, in words."""
  rows = read_table("miniature.csv")
  found = []
  for data in sorted({row["data"] for row in rows}):
    own = [r for r in rows if r["data"] == data and r["metric"] == "r10"]
    sizes = {int(r["dataset_size"]) for r in own}
    size = min(sizes, key=lambda n: abs(math.log(n / pairs)))
    some = [r for r in own if int(r["dataset_size"]) == size]
    most = max(int(r["samples_seen"]) for r in some)
    some = [r for r in some if int(r["samples_seen"]) == most]
    some.sort(key=lambda r: -float(r["mean"]))
    names = "; ".join(
      f"{r['arch']} with {r['method']}{'' if r['aug'] == 'none' else ' ' + r['aug']} "
      f"{float(r['mean']):.1f} ± {float(r['deviation']):.1f}"
      for r in some[:3]
    )
    found.append(f"{data}, {size} pairs, {most} samples, R@10 in percent: {names}")
  return found
