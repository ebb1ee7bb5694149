"""All numbers that the pooled law is fitted to, in one form: the paper's and those of other papers.

docs/evidence.md describes each source and how its protocol differs from the others.
"""

from collections.abc import Iterable
import dataclasses
import functools
import math

import numpy as np

from clip_jax.errors import UserError
from clip_jax.study.model_shapes import ModelShape, known_shapes, paper_shape, short_name
from clip_jax.study.tables import read_table

# Metrics of the pooled law -> (title, accuracy of guessing in percent).
METRICS = {
  "zero_shot": ("ImageNet zero-shot", 0.1),
  "variants5": ("shifted ImageNets: V2, R, Sketch, A, ObjectNet", 0.4),
  "variants": ("shifted ImageNets: the five and ReaL", 0.4),
  "zero_shot_V2": ("ImageNet-V2", 0.1),
  "zero_shot_R": ("ImageNet-R", 0.5),
  "zero_shot_Sketch": ("ImageNet-Sketch", 0.1),
  "zero_shot_A": ("ImageNet-A", 0.5),
  "zero_shot_ObjectNet": ("ObjectNet", 0.3),
  "i2t_r1": ("COCO image-to-text R@1", 0.02),
  "t2i_r1": ("COCO text-to-image R@1", 0.02),
  "i2t_r5": ("COCO image-to-text R@5", 0.1),
  "t2i_r5": ("COCO text-to-image R@5", 0.1),
  "flickr_i2t_r5": ("Flickr30k image-to-text R@5", 0.5),
  "flickr_t2i_r5": ("Flickr30k text-to-image R@5", 0.5),
  "linear_probe": ("ImageNet linear probe", 0.1),
  "linear_probe_shifted": ("linear probe on shifted ImageNets", 0.4),
  "shot5": ("ImageNet 5-shot", 0.1),
  "shot10": ("ImageNet 10-shot", 0.1),
  "r10": ("R@10 of your own test set", 0.1),
  "i2t_r10": ("image-to-text R@10 of your own test set", 0.1),
  "t2i_r10": ("text-to-image R@10 of your own test set", 0.1),
  "datacomp_35": ("mean of 35 classification sets", 0.1),
}
_TUNED_METRICS = {
  "imagenet_zero_shot": "zero_shot",
  "imagenet_shift_5": "variants5",
  "coco_i2t_r5": "i2t_r5",
  "coco_t2i_r5": "t2i_r5",
  "datacomp_35": "datacomp_35",
}
_OPENCLIP_METRICS = {
  "imagenet_zero_shot": "zero_shot",
  "imagenet_v2": "zero_shot_V2",
  "imagenet_r": "zero_shot_R",
  "imagenet_sketch": "zero_shot_Sketch",
  "imagenet_a": "zero_shot_A",
  "objectnet": "zero_shot_ObjectNet",
  "coco_i2t_r5": "i2t_r5",
  "coco_t2i_r5": "t2i_r5",
  "flickr30k_i2t_r5": "flickr_i2t_r5",
  "flickr30k_t2i_r5": "flickr_t2i_r5",
}
_SHIFTED = tuple(f"zero_shot_{name}" for name in ("V2", "R", "Sketch", "A", "ObjectNet"))
# Corpus -> (family, number of pairs, percent of the family's raw pool that it keeps). Corpora of a
# family share an effect and differ by another. DataComp-1.4B is CommonPool after its paper's best
# filter, by images and CLIP score.
CORPORA = {
  "WebLI": ("WebLI", 3.4e9, 100.0),
  "DataComp-1.4B": ("CommonPool", 1.4e9, 10.9),
  "CommonPool": ("CommonPool", 1.28e10, 100.0),
  "Re-LAION-1.4B": ("LAION", 1.4e9, 100.0),
  "LAION-80M": ("LAION", 8e7, 100.0),
  "LAION-400M": ("LAION", 4.07e8, 100.0),
  "LAION-2B": ("LAION", 2.3e9, 100.0),
  "CLIP-WIT": ("WIT", 4e8, 100.0),
  "YFCC15M": ("YFCC", 1.5e7, 100.0),
  "CC3M": ("Conceptual Captions", 2.9e6, 100.0),
  "CC12M": ("Conceptual Captions", 1.1e7, 100.0),
}
PAPER_BATCH = 16_384


class NoEvidence(UserError):
  """Nothing can be said about a question; the command exits with a code of its own."""

  exit_code = 3


@dataclasses.dataclass(frozen=True)
class Observation:
  """The accuracy of one run by one metric, or a question about one.

  Attributes:
    corpus: name in `CORPORA`, or of your own data; "" if unknown.
    protocol: who trained how: "tuned" (best of a sweep), "tuned constant" (the same without decay
      of the learning rate), "paper", "openclip" or "own".
    objective: "clip", "siglip", "mammut" or "coca"; the latter two also caption.
    method: "CLIP", "SLIP", "FLIP", or "DA:" and the augmentation.
    quality: percent of a pool that is kept, best first.
    unique: number of distinct examples seen.
    samples: number of examples seen, counting repetitions.
    steps: number of steps; NaN if batch, learning rate and warm-up were tuned.
    shape: the model.
    metric: a name in `METRICS`.
    accuracy: in percent; NaN for a question.
    precision: uncertainty of a number that was read off a figure or rounded, ± points.
    source: where the number was published.
  """

  corpus: str
  protocol: str
  objective: str
  method: str
  quality: float
  unique: float
  samples: float
  steps: float
  shape: ModelShape
  metric: str
  accuracy: float = math.nan
  precision: float = 0.1
  source: str = ""

  @property
  def family(self) -> str:
    """Family of the corpus; a corpus that is not in `CORPORA` is its own."""
    return CORPORA.get(self.corpus, (self.corpus,))[0]

  @property
  def kept(self) -> float:
    """Percent of the raw pool of the family that is kept, by the corpus and the quality cut."""
    return CORPORA.get(self.corpus, ("", 0.0, 100.0))[2] * self.quality / 100

  @property
  def group(self) -> str:
    """Corpus and protocol, which share the noise of their runs."""
    return f"{self.corpus}, {self.protocol}"


@functools.cache
def observations(metric: str) -> tuple[Observation, ...]:
  """Loads all evidence about a metric."""
  every = [*_paper(metric), *_tuned(metric), *_openclip(metric), *_related(metric)]
  return tuple(every)


def pool_of(corpus: str) -> float:
  """Number of pairs of a corpus; infinite if unknown."""
  return CORPORA.get(corpus, ("", math.inf, 0.0))[1]


def _paper(metric: str) -> Iterable[Observation]:
  """The paper's numbers, with the mean of those that several figures show of the same run."""
  same: dict[tuple, list] = {}
  for row in read_table("paper.csv"):
    if row["metric"] == metric:
      key = tuple(row[k] for k in ("arch", "method", "aug", "quality", "dataset_size"))
      same.setdefault((*key, row["samples_seen"]), []).append(row)
  for (arch, method, aug, quality, size, samples), rows in same.items():
    seen = float(samples)
    yield Observation(
      "WebLI",
      "paper",
      "clip",
      f"DA:{aug}" if method == "CLIP+DA" else method,
      float(quality),
      min(seen, float(size)),
      seen,
      seen / PAPER_BATCH / (2 if method == "FLIP" else 1),
      paper_shape(arch),
      metric,
      100 - float(np.mean([float(row["error"]) for row in rows])),
      float(np.mean([float(row["precision"]) for row in rows])),
      f"arXiv 2404.08197, figure {'/'.join(sorted({row['figure'] for row in rows}))}",
    )


def _tuned(metric: str) -> Iterable[Observation]:
  for row in read_table("tuned_runs.csv"):
    name, samples = row["model"], float(row["samples_seen"])
    if name == "B-16" and row["objective"] in ("mammut", "coca"):
      name = "B-16+text"  # Its text tower is that of the L models, as tuned_models.csv shows.
    if _TUNED_METRICS.get(row["metric"]) != metric or _is_long_run(row, samples):
      continue
    yield Observation(
      row["data"],
      "tuned" if row["schedule"] == "cosine" else "tuned constant",
      row["objective"],
      "CLIP",
      100.0,
      min(samples, pool_of(row["data"])),
      samples,
      math.nan,
      known_shapes()[name],
      metric,
      float(row["percent"]),
      0.05,
      row["source"],
    )


def _is_long_run(row, samples):
  """Whether a number with a constant learning rate is from the start of a much longer run.

  Only four CLIP models, and captioning models up to 12.8M samples, were tuned at each size. The
  other small sizes are checkpoints of a run with batches of about 90,000: L-14 has 0.4% there
  after 12.8M samples, and 15.6% where that size was trained for itself.
  """
  if row["schedule"] != "const" or samples >= 6e8:
    return False
  if row["objective"] == "clip":
    return row["model"] not in ("B-16", "B-32", "S-32", "M-32")
  return samples > 2e7 or row["model"] in ("H-16", "L-14", "L-32", "S-16")


def _openclip(metric: str) -> Iterable[Observation]:
  runs: dict[tuple, dict] = {}
  for row in read_table("openclip_laion.csv"):
    name = _OPENCLIP_METRICS[row["metric"]]
    key = (row["data"], row["model"], row["samples_seen"], row["batch"], row["source"])
    runs.setdefault(key, {})[name] = float(row["percent"])
  for (data, model, samples, batch, source), values in runs.items():
    if all(name in values for name in _SHIFTED):
      values["variants5"] = float(np.mean([values[name] for name in _SHIFTED]))
    if metric in values:
      seen = float(samples)
      # OpenAI's batch is from its paper; the others are in thousands in the table.
      size = float(batch.removesuffix("k")) * 1000 if batch else 32_768
      yield Observation(
        data,
        "openclip",
        "clip",
        "CLIP",
        100.0,
        min(seen, pool_of(data)),
        seen,
        seen / size,
        known_shapes()[short_name(model)],
        metric,
        values[metric],
        0.05,
        source,
      )


def _related(metric: str) -> Iterable[Observation]:
  """Numbers of `related_work.csv` that the other tables lack."""
  for row in read_table("related_work.csv"):
    if row["metric"] != metric or row["law_corpus"] == "":
      continue
    seen = float(row["samples_seen"])
    yield Observation(
      row["law_corpus"],
      "openclip",
      "clip",
      row["law_method"],
      float(row["law_quality"]),
      min(seen, float(row["dataset_size"])),
      seen,
      seen / float(row["batch"]),
      known_shapes()[short_name(row["arch"])],
      metric,
      float(row["value"]),
      0.1,
      f"{row['source']}: {row['name']}",
    )
