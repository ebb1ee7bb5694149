"""Builders of the study's grids, at any scale: one function for each question that it asks.

Each takes a `make(arch=, method=, aug=, size=, quality=, samples=, seed=)` that returns the config
of one run, in which `size` is the number of distinct examples before the quality cut and `samples`
the number of examples seen in training, counting repetitions.
"""

from collections.abc import Callable, Iterable, Sequence
import re

from ml_collections.config_dict import ConfigDict

from clip_jax.study.budgets import compute_of
from clip_jax.study.grid import Run

Make = Callable[..., ConfigDict]

# The paper's dataset sizes: 10 million to 3.4 billion pairs.
SIZES = tuple(n * 10**6 for n in (10, 25, 50, 100, 200, 400, 800, 1000, 1700, 2600, 3400))
SAMPLES = 3_400_000_000  # Samples seen by each run of the paper's "same samples" protocol.
VITS = ("ViT-Ti/16", "ViT-S/16", "ViT-B/32", "ViT-B/16", "ViT-L/16")
ARCHITECTURES = ("ViT-B/32", "ResNet-50", "ConvNeXt-T", "Swin-T", "Mixer-B/32")
METHODS = ("CLIP", "SLIP", "CLIP+DA", "FLIP")
AUGMENTATIONS = ("none", "crop&flip", "RandAugment", "stacked RandAugment")


def sizes_by_epochs(
  make: Make,
  *,
  data: str,
  sizes: Sequence[int],
  epochs: Sequence[int],
  arch: str = "ViT-B/32",
  seeds: Iterable[int] = (0,),
) -> list[Run]:
  """Every data size with every number of epochs (Figures 2 to 4 and 20)."""
  return [
    _run(make, data, "epochs", arch, size=size, samples=many * size, seed=seed)
    for seed in seeds
    for size in sizes
    for many in epochs
  ]


def quality_cuts(
  make: Make,
  *,
  data: str,
  pool: int,
  samples: int,
  cuts: Sequence[float] = (20, 40, 60, 80, 100),
  arch: str = "ViT-B/32",
  seeds: Iterable[int] = (0,),
) -> list[Run]:
  """Each quality cut of a pool for one epoch, and for a fixed number of samples (Figures 5 to 7).

  Args:
    make: builds the config of a run.
    data: name of the data set.
    pool: number of pairs before the cut.
    samples: number of samples of the second group of runs.
    cuts: percentages of the pool to keep, best first.
    arch: the architecture.
    seeds: one run per seed.
  """
  once = [
    _run(
      make,
      data,
      "one epoch",
      arch,
      size=pool,
      quality=cut,
      samples=round(pool * cut / 100),
      seed=seed,
    )
    for seed in seeds
    for cut in cuts
  ]
  same = [
    _run(make, data, "same samples", arch, size=pool, quality=cut, samples=samples, seed=seed)
    for seed in seeds
    for cut in cuts
  ]
  # Without a cut, one epoch may be the same run as that for a fixed number of samples.
  seen = {run.config.to_json() for run in once}
  return once + [run for run in same if run.config.to_json() not in seen]


def compare_cut(
  make: Make, *, data: str, pool: int, cut: float, samples: int, arch: str, seeds: Iterable[int]
) -> list[Run]:
  """Compares a pool with its best `cut` percent, for equal epochs and for equal samples.

  Three runs per seed: the whole pool for `samples`, the cut for as many epochs (and so fewer
  samples), and the cut for `samples`. Meant for pools that are too small for one epoch.
  """
  part = round(samples * cut / 100)
  return [
    _run(make, data, protocol, arch, size=pool, quality=quality, samples=seen, seed=seed)
    for seed in seeds
    for protocol, quality, seen in (
      ("epochs", 100, samples),
      ("epochs", cut, part),
      ("same samples", cut, samples),
    )
  ]


def by_size(
  make: Make,
  *,
  data: str,
  sizes: Sequence[int],
  samples: int | None,
  archs: Sequence[str] = ("ViT-B/32",),
  methods: Sequence[str] = ("CLIP",),
  seeds: Iterable[int] = (0,),
) -> list[Run]:
  """Architectures (Figures 8 to 15) or strategies (Figures 16 to 19) at each data size.

  Args:
    make: builds the config of a run.
    data: name of the data set.
    sizes: data sizes in pairs.
    samples: number of samples that each run sees; None for one epoch.
    archs: the architectures.
    methods: the strategies.
    seeds: one run of each combination per seed.
  """
  return [
    _run(
      make,
      data,
      "one epoch" if samples is None else "same samples",
      arch,
      method=method,
      size=size,
      samples=samples or size,
      seed=seed,
    )
    for seed in seeds
    for arch in archs
    for method in methods
    for size in sizes
  ]


def at_paper_sizes(
  make: Make, *, data: str, archs: Sequence[str] = ("ViT-B/32",), methods: Sequence[str] = ("CLIP",)
) -> list[Run]:
  """The paper's sizes, each for one epoch and for `SAMPLES` samples (equal at the largest)."""
  return [
    run
    for sizes, samples in ((SIZES, None), (SIZES[:-1], SAMPLES))
    for run in by_size(make, data=data, sizes=sizes, samples=samples, archs=archs, methods=methods)
  ]


def equal_compute(
  make: Make,
  *,
  data: str,
  size: int,
  samples: int,
  arch: str,
  methods: Sequence[str],
  baseline: str = "CLIP",
  seeds: Iterable[int] = (0,),
) -> list[Run]:
  """Strategies at the compute that `baseline` needs for `samples` samples.

  A strategy that costs more per sample gets proportionally fewer samples.
  """
  seeds, cost = (
    tuple(seeds),
    lambda method: compute_of(make(arch=arch, method=method, size=size, samples=samples)).flops,
  )
  return [
    _run(
      make,
      data,
      "same compute",
      arch,
      method=method,
      size=size,
      samples=round(samples * cost(baseline) / cost(method)),
      seed=seed,
    )
    for method in methods
    for seed in seeds
  ]


def augmentations(
  make: Make,
  *,
  data: str,
  sizes: Sequence[int],
  epochs: float,
  augs: Sequence[str] = AUGMENTATIONS,
  arch: str = "ViT-B/32",
  seeds: Iterable[int] = (0,),
) -> list[Run]:
  """Augmentations at small data sizes for many epochs (Figure 1b)."""
  return [
    _run(
      make,
      data,
      "epochs",
      arch,
      method="CLIP" if aug == "none" else "CLIP+DA",
      aug=aug,
      size=size,
      samples=round(epochs * size),
      seed=seed,
    )
    for seed in seeds
    for aug in augs
    for size in sizes
  ]


def _run(make, data, protocol, arch, *, size, samples, seed, method="CLIP", aug=None, quality=100):
  """Builds one run and its name."""
  # The paper does not say which augmentation CLIP+DA uses, so take its best one.
  aug = aug or ("stacked RandAugment" if method == "CLIP+DA" else "none")
  number = lambda count: short(count).replace(".", "p")
  parts = [
    data,
    arch,
    aug if method == "CLIP+DA" else method,
    number(size),
    *([f"top{quality:g}"] if quality < 100 else []),
    f"{number(samples)}-seen",
    protocol,
    f"s{seed}",
  ]
  return Run(
    name=".".join(re.sub(r"[^\w+-]+", "-", part) for part in parts),
    config=make(
      arch=arch, method=method, aug=aug, size=size, quality=quality, samples=samples, seed=seed
    ),
    factors=dict(
      data=data, protocol=protocol, arch=arch, method=method, aug=aug, quality=float(quality)
    ),
  )


def short(count: int) -> str:
  """Abbreviates a size: 1600 is "1.6k", 3_400_000_000 is "3.4B"."""
  for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
    if count >= unit:
      return f"{count / unit:.4g}{letter}"
  return str(count)
