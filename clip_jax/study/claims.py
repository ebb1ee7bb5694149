"""The paper's claims, each with a test on the differences between runs.

Source: Li, Xie, Cubuk 2024, text and figures.
"""

import numpy as np

from clip_jax.study.designs import short
from clip_jax.study.paired_tests import FAILS, HOLDS, INCONCLUSIVE, difference, verdict


def _select(points, metric, **factors):
  return [
    p
    for p in points
    if p.metric == metric and all(getattr(p, name) == value for name, value in factors.items())
  ]


def _filter(points, at):
  return [p for p in points if at(p)]


_size_samples_seed = lambda p: (p.dataset_size, p.samples_seen, p.seed)
_PLAIN_CLIP = dict(method="CLIP", aug="none", quality=100.0)


def _size_range(points):
  """(smallest, largest) data size of some runs; None if they are equal."""
  sizes = sorted({p.dataset_size for p in points})
  return (sizes[0], sizes[-1]) if len(sizes) > 1 else None


def _resnet(points, metric):
  """S1: ResNet is better than the middle ViT at the smallest data size, and worse at the largest.

  Only runs of one epoch count.
  """
  own = [p for p in _select(points, metric, **_PLAIN_CLIP) if p.epochs < 1.01]
  convolutions = _filter(own, lambda p: p.arch.startswith("ResNet"))
  vits = _filter(own, lambda p: p.arch.startswith("ViT"))
  ends = _size_range(convolutions)
  if not ends:
    return None
  middle = sorted({(p.forward_gmacs, p.arch) for p in vits})
  arch = middle[len(middle) // 2][1] if middle else ""
  return verdict(
    [
      (
        difference(
          f"ResNet minus {arch} at {short(size)}",
          _select(convolutions, metric, dataset_size=size),
          _select(vits, metric, dataset_size=size, arch=arch),
          _size_samples_seed,
        ),
        sign,
      )
      for size, sign in zip(ends, (-1, 1))
    ]
  )


def _largest_vit(points, metric, at, sign):
  """Compares the largest ViT with a smaller one, in runs of one epoch.

  Args:
    points: the runs.
    metric: the metric.
    at: 0 for the smallest data size, compared with the second largest ViT; -1 for the largest
      data size, compared with the smallest ViT.
    sign: the sign that the claim predicts.

  Returns:
    (difference, sign), or None with fewer than three ViTs or two data sizes.
  """
  own = [
    p
    for p in _select(points, metric, **_PLAIN_CLIP)
    if p.epochs < 1.01 and p.arch.startswith("ViT")
  ]
  ends, archs = _size_range(own), sorted({(p.forward_gmacs, p.arch) for p in own})
  if not ends or len(archs) < 3:
    return None
  size, large, other = ends[at], archs[-1][1], archs[-2][1] if at == 0 else archs[0][1]
  return difference(
    f"{large} minus {other} at {short(size)}",
    _select(own, metric, dataset_size=size, arch=large),
    _select(own, metric, dataset_size=size, arch=other),
    _size_samples_seed,
  ), sign


def _small_data(points, metric):
  """S2: at the smallest data size, the largest ViT is worse than the second largest."""
  one = _largest_vit(points, metric, 0, 1)
  return one and verdict([one])


def _frontier(points, metric):
  """S3: the largest ViT is better at the largest data size, and worse at the smallest."""
  ends = [_largest_vit(points, metric, 0, 1), _largest_vit(points, metric, -1, -1)]
  return None if None in ends else verdict(ends)


def _saturation(points, metric):
  """S4: data beyond an eighth of the samples seen improves the error by less than 1 point."""
  own = list(_select(points, metric, **_PLAIN_CLIP))
  same = {p.samples_seen for p in own if p.protocol == "same samples"}
  own = [p for p in own if p.samples_seen in same]
  by = {}
  for p in own:
    by.setdefault(p.arch, []).append(p)
  own = max(by.values(), key=lambda g: len({p.dataset_size for p in g}), default=[])
  ends = _size_range(own)
  if not ends:
    return None
  edge = own[0].samples_seen / 8
  enough = [n for n in sorted({p.dataset_size for p in own}) if n >= edge and n < ends[1]]
  if not enough or ends[0] >= edge:
    return None
  key = lambda p: (p.samples_seen, p.seed)
  above = difference(
    f"{short(enough[0])} minus {short(ends[1])}",
    _select(own, metric, dataset_size=enough[0]),
    _select(own, metric, dataset_size=ends[1]),
    key,
  )
  below = difference(
    f"{short(ends[0])} minus {short(ends[1])}",
    _select(own, metric, dataset_size=ends[0]),
    _select(own, metric, dataset_size=ends[1]),
    key,
  )
  if above is None or below is None:
    return None
  numbers = f"{below}; {above}"
  if above.mean + above.bound < 1:
    return (HOLDS if below.sign > 0 else INCONCLUSIVE), numbers
  return (FAILS if above.mean - above.bound > 1 else INCONCLUSIVE), numbers


def _cut(points, metric):
  """S5: the best 40% beat the whole pool for the same number of epochs, and so more compute."""
  own = _select(points, metric, method="CLIP", aug="none")
  best = [p for p in own if p.quality < 100 and p.protocol in ("one epoch", "epochs")]
  key = lambda p: (p.arch, p.seed)
  whole = [p for p in own if p.quality == 100 and p.protocol in ("one epoch", "epochs")]
  # Test the cut nearest to the paper's 40%; choosing the best one afterwards would bias the test.
  nearest = sorted({p.quality for p in best}, key=lambda q: abs(q - 40))[:1]
  return verdict(
    [
      (difference(f"best {q:g}% minus all", [p for p in best if p.quality == q], whole, key), -1)
      for q in nearest
    ]
  )


def _cut_metrics(points, metric):
  """S6: the best cut depends on the metric.

  It holds if two cuts are each significantly better than the other by one metric.
  """
  by = {}
  for name in ("zero_shot", "shot5", "i2t_r1", "r10"):
    own = _select(points, name, method="CLIP", aug="none", protocol="same samples")
    cuts = {q: [p for p in own if p.quality == q] for q in {p.quality for p in own}}
    if len(cuts) >= 3:
      by[name] = cuts
  if len(by) < 2:
    return None
  mean = lambda runs: float(np.mean([p.error for p in runs]))
  best = {name: min(cuts, key=lambda q: mean(cuts[q])) for name, cuts in by.items()}
  numbers = "; ".join(f"{name}: {cut:g}%" for name, cut in best.items())
  if len(set(best.values())) == 1:
    return FAILS, numbers
  apart = any(
    best[a] != best[b]
    and _is_better(by[a][best[a]], by[a][best[b]])
    and _is_better(by[b][best[b]], by[b][best[a]])
    for a in best
    for b in best
  )
  return (HOLDS if apart else INCONCLUSIVE), numbers


def _is_better(first, second):
  """Whether the error of some runs is significantly below that of others.

  With too few pairs for a test, it must be lower by more than the uncertainty of the readings.
  """
  found = difference("", first, second, lambda p: (p.arch, p.seed))
  if found:
    return found.sign < 0
  (one, *_), (other, *_) = first, second
  return other.error - one.error > one.precision + other.precision


def _method(method, sizes, sign, baseline="CLIP", once=False, name=None):
  """Returns a test that compares two strategies on the whole pool.

  Args:
    method: the first strategy.
    sizes: which of their common data sizes to use: "small" (smallest), "large" (largest) or "all".
    sign: the sign that the claim predicts.
    baseline: the second strategy.
    once: whether to use runs of one epoch, or those of more.
    name: metric to use instead of the caller's.
  """

  def check(points, metric):
    metric = name or metric
    own = [p for p in _select(points, metric, quality=100.0) if (p.epochs < 1.01) == once]
    first, second = _select(own, metric, method=method), _select(own, metric, method=baseline)
    shared = sorted({p.dataset_size for p in first} & {p.dataset_size for p in second})
    if not shared:
      return None
    chosen = {"small": shared[:1], "large": shared[-1:], "all": shared}[sizes]
    key = lambda p: (p.arch, *_size_samples_seed(p))
    return verdict(
      [
        (
          difference(
            f"{method} minus {baseline} at {'/'.join(map(short, chosen))}",
            [p for p in first if p.dataset_size in chosen],
            second,
            key,
          ),
          sign,
        )
      ]
    )

  return check


def _half_data(points, metric):
  """S7: CLIP+DA is not worse than CLIP on 2 to 4 times the data."""
  own = [p for p in _select(points, metric, quality=100.0) if p.epochs > 1.01]
  first, second = _select(own, metric, method="CLIP+DA"), _select(own, metric, method="CLIP")
  for size in sorted({p.dataset_size for p in first}):
    doubled = [p for p in second if 1.9 <= p.dataset_size / size <= 4.1]
    sizes = "/".join(sorted({short(p.dataset_size) for p in doubled}))
    found = difference(
      f"CLIP+DA at {short(size)} minus CLIP at {sizes}",
      [p for p in first if p.dataset_size == size],
      doubled,
      lambda p: (p.arch, p.samples_seen, p.seed),
    )
    if found:
      return (
        FAILS if found.sign > 0 else HOLDS if found.mean + found.bound < 1 else INCONCLUSIVE
      ), str(found)
  return None


def _order(points, metric):
  """S8: RandAugment is better than crop&flip, which is better than no augmentation."""
  own = [p for p in _select(points, metric, quality=100.0) if p.epochs > 1.01]
  key = lambda p: (p.arch, *_size_samples_seed(p))
  by = {aug: [p for p in own if p.aug == aug] for aug in ("crop&flip", "RandAugment", "none")}
  return verdict(
    [
      (difference("RandAugment minus crop&flip", by["RandAugment"], by["crop&flip"], key), -1),
      (
        difference(
          "crop&flip minus none",
          by["crop&flip"],
          [p for p in by["none"] if p.method == "CLIP"],
          key,
        ),
        -1,
      ),
    ]
  )


def _overfits(points, metric):
  """S14: at the smallest data size, retrieval is worse after the most epochs than after 8."""
  name = "r10" if any(p.metric == "r10" for p in points) else "i2t_r1"
  own = [p for p in _select(points, name, **_PLAIN_CLIP) if p.epochs > 7]
  if not own:
    return None
  size = min((p.dataset_size for p in own if p.epochs < 9), default=0)
  own = [p for p in own if p.dataset_size == size]
  most = max((p.epochs for p in own), default=0)
  if most < 9:
    return None
  key = lambda p: (p.arch, p.seed)
  return verdict(
    [
      (
        difference(
          f"{most:.3g} epochs minus 8 at {short(size)}",
          [p for p in own if p.epochs == most],
          [p for p in own if 7 < p.epochs < 9],
          key,
        ),
        1,
      )
    ]
  )


def _linear(points, metric):
  """S15: accuracy on shifted sets is linear in accuracy on ImageNet (r2 above 0.95)."""
  at = {(p.where, p.metric): 100 - p.error for p in points}
  found = []
  for name in ("R", "Sketch", "V2", "ObjectNet"):
    pairs = [
      (at[p.where, "zero_shot"], 100 - p.error)
      for p in _select(points, f"zero_shot_{name}")
      if (p.where, "zero_shot") in at
    ]
    if len(pairs) >= 8:
      found.append((name, float(np.corrcoef(np.array(pairs).T)[0, 1] ** 2)))
  if not found:
    return None
  return (HOLDS if min(r for _, r in found) > 0.95 else FAILS), "; ".join(
    f"{name}: r2 {r:.2f}" for name, r in found
  )


def _all_of(*checks):
  """Returns a test that holds if all of several tests hold."""

  def check(points, metric):
    results = [one(points, metric) for one in checks]
    if None in results:
      return None
    verdicts = [v for v, _ in results]
    worst = next((v for v in (FAILS, INCONCLUSIVE) if v in verdicts), HOLDS)
    return worst, "; ".join(n for _, n in results)

  return check


CLAIMS = {
  "S1": ("in one epoch, ResNet beats ViT on little data and ViT beats ResNet on much", _resnet),
  "S2": ("in one epoch on little data, the largest ViT is worse than a smaller one", _small_data),
  "S3": ("the best model size grows with compute", _frontier),
  "S4": ("at fixed samples seen, distinct data beyond 1/8 of them gains < 1 point", _saturation),
  "S5": ("the best 40% of the data, at 40% of the compute, beat all of it", _cut),
  "S6": ("the best quality cut depends on the metric", _cut_metrics),
  "S7": ("CLIP+DA on half the data matches CLIP", _half_data),
  "S8": ("over many epochs, RandAugment > crop&flip > none", _order),
  "S9": ("in one epoch, augmentation hurts", _method("CLIP+DA", "all", 1, once=True)),
  "S10": ("in one epoch, SLIP beats CLIP on little data", _method("SLIP", "small", -1, once=True)),
  "S11": (
    "over many epochs, SLIP beats CLIP on little data and CLIP+DA beats SLIP on more",
    _all_of(_method("SLIP", "small", -1), _method("CLIP+DA", "large", -1, baseline="SLIP")),
  ),
  "S12": (
    "in linear probing, CLIP+DA and SLIP beat CLIP on little data",
    _all_of(
      _method("SLIP", "small", -1, name="linear_probe"),
      _method("CLIP+DA", "small", -1, name="linear_probe"),
    ),
  ),
  "S13": ("FLIP is worse than CLIP on little data", _method("FLIP", "small", 1)),
  "S14": ("on little data, retrieval gets worse beyond 8 epochs", _overfits),
  "S15": ("accuracy on shifted sets is linear in ImageNet accuracy", _linear),
}
