"""The paper's statements, each as a test of differences between runs.

Source: Li, Xie, Cubuk 2024, as its text or figures have them.
"""

import numpy as np

from clip_jax.study.differences import FAILS, HOLDS, UNTOLD, difference, verdict
from clip_jax.study.grids import short


def _of(points, metric, **factors):
  return [p for p in points if p.metric == metric
          and all(getattr(p, name) == value for name, value in factors.items())]


def _where(points, at):
  return [p for p in points if at(p)]


_SAME = lambda p: (p.dataset_size, p.samples_seen, p.seed)
_PLAIN = dict(method="CLIP", aug="none", quality=100.0)


def _ends(points):
  """The smallest and the largest size of some runs; None unless there are two."""
  sizes = sorted({p.dataset_size for p in points})
  return (sizes[0], sizes[-1]) if len(sizes) > 1 else None


def _resnet(points, metric):
  """S1: better with little data, worse with much."""
  own = [p for p in _of(points, metric, **_PLAIN) if p.epochs < 1.01]
  convolutions = _where(own, lambda p: p.arch.startswith("ResNet"))
  vits = _where(own, lambda p: p.arch.startswith("ViT"))
  ends = _ends(convolutions)
  if not ends:
    return None
  middle = sorted({(p.forward_gmacs, p.arch) for p in vits})
  arch = middle[len(middle) // 2][1] if middle else ""
  return verdict([(difference(
      f"ResNet less {arch} at {short(size)}", _of(convolutions, metric, dataset_size=size),
      _of(vits, metric, dataset_size=size, arch=arch), _SAME), sign)
                   for size, sign in zip(ends, (-1, 1))])


def _largest_vit(points, metric, at, sign):
  """The largest ViT against the middle one at the smallest or the largest size, once."""
  own = [p for p in _of(points, metric, **_PLAIN) if p.epochs < 1.01 and p.arch.startswith("ViT")]
  ends, archs = _ends(own), sorted({(p.forward_gmacs, p.arch) for p in own})
  if not ends or len(archs) < 3:
    return None
  size, large, other = ends[at], archs[-1][1], archs[-2][1] if at == 0 else archs[0][1]
  return difference(f"{large} less {other} at {short(size)}",
                    _of(own, metric, dataset_size=size, arch=large),
                    _of(own, metric, dataset_size=size, arch=other), _SAME), sign


def _small_data(points, metric):
  """S2."""
  one = _largest_vit(points, metric, 0, 1)
  return one and verdict([one])


def _frontier(points, metric):
  """S3: at the largest size the largest is best, at the smallest it is not."""
  ends = [_largest_vit(points, metric, 0, 1), _largest_vit(points, metric, -1, -1)]
  return None if None in ends else verdict(ends)


def _saturation(points, metric):
  """S4: beyond an eighth of the samples seen, more data gains less than from there down."""
  own = list(_of(points, metric, **_PLAIN))
  same = {p.samples_seen for p in own if p.protocol == "same samples"}
  own = [p for p in own if p.samples_seen in same]
  by = {}
  for p in own:
    by.setdefault(p.arch, []).append(p)
  own = max(by.values(), key=lambda g: len({p.dataset_size for p in g}), default=[])
  ends = _ends(own)
  if not ends:
    return None
  edge = own[0].samples_seen / 8
  enough = [n for n in sorted({p.dataset_size for p in own}) if n >= edge and n < ends[1]]
  if not enough or ends[0] >= edge:
    return None
  key = lambda p: (p.samples_seen, p.seed)
  above = difference(f"{short(enough[0])} less {short(ends[1])}",
                     _of(own, metric, dataset_size=enough[0]),
                     _of(own, metric, dataset_size=ends[1]), key)
  below = difference(f"{short(ends[0])} less {short(ends[1])}",
                     _of(own, metric, dataset_size=ends[0]),
                     _of(own, metric, dataset_size=ends[1]), key)
  if above is None or below is None:
    return None
  numbers = f"{below}; {above}"
  if above.mean + above.bound < 1:
    return (HOLDS if below.sign > 0 else UNTOLD), numbers
  return (FAILS if above.mean - above.bound > 1 else UNTOLD), numbers


def _cut(points, metric):
  """S5: the best two fifths, seen as often, beat all, which takes more compute."""
  own = _of(points, metric, method="CLIP", aug="none")
  best = [p for p in own if p.quality < 100 and p.protocol in ("one epoch", "epochs")]
  key = lambda p: (p.arch, p.seed)
  whole = [p for p in own if p.quality == 100 and p.protocol in ("one epoch", "epochs")]
  # The paper's cut, or the nearest to it; which is best here was not known before.
  nearest = sorted({p.quality for p in best}, key=lambda q: abs(q - 40))[:1]
  return verdict([(difference(f"best {q:g}% less all", [p for p in best if p.quality == q], whole,
                               key), -1) for q in nearest])


def _cut_metrics(points, metric):
  """S6: the best cut is not the same for every metric; each of two surely better by one of them."""
  by = {}
  for name in ("zero_shot", "shot5", "i2t_r1", "r10"):
    own = _of(points, name, method="CLIP", aug="none", protocol="same samples")
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
  apart = any(best[a] != best[b] and _better(by[a][best[a]], by[a][best[b]])
              and _better(by[b][best[b]], by[b][best[a]]) for a in best for b in best)
  return (HOLDS if apart else UNTOLD), numbers


def _better(first, second):
  """Whether the error of some runs is surely below that of others; of single ones, as read."""
  found = difference("", first, second, lambda p: (p.arch, p.seed))
  if found:
    return found.sign < 0
  (one, *_), (other, *_) = first, second
  return other.error - one.error > one.precision + other.precision


def _method(method, sizes, sign, than="CLIP", once=False, name=None):
  """A test of a strategy against another, at the smallest or largest of their sizes, or at all."""
  def judge(points, metric):
    metric = name or metric
    own = [p for p in _of(points, metric, quality=100.0) if (p.epochs < 1.01) == once]
    first, second = _of(own, metric, method=method), _of(own, metric, method=than)
    shared = sorted({p.dataset_size for p in first} & {p.dataset_size for p in second})
    if not shared:
      return None
    chosen = {"small": shared[:1], "large": shared[-1:], "all": shared}[sizes]
    alike = lambda p: (p.arch, *_SAME(p))
    return verdict([(difference(
        f"{method} less {than} at {'/'.join(map(short, chosen))}",
        [p for p in first if p.dataset_size in chosen], second, alike), sign)])
  return judge


def _half_data(points, metric):
  """S7: CLIP+DA at one size is no worse than CLIP at the next, twice or more as large."""
  own = [p for p in _of(points, metric, quality=100.0) if p.epochs > 1.01]
  first, second = _of(own, metric, method="CLIP+DA"), _of(own, metric, method="CLIP")
  for size in sorted({p.dataset_size for p in first}):
    doubled = [p for p in second if 1.9 <= p.dataset_size / size <= 4.1]
    sizes = "/".join(sorted({short(p.dataset_size) for p in doubled}))
    found = difference(
        f"CLIP+DA at {short(size)} less CLIP at {sizes}",
        [p for p in first if p.dataset_size == size], doubled,
        lambda p: (p.arch, p.samples_seen, p.seed))
    if found:
      return (FAILS if found.sign > 0 else HOLDS if found.mean + found.bound < 1
              else UNTOLD), str(found)
  return None


def _order(points, metric):
  """S8: stacked RandAugment, RandAugment, crop&flip, none, at the smallest size."""
  own = [p for p in _of(points, metric, quality=100.0) if p.epochs > 1.01]
  key = lambda p: (p.arch, *_SAME(p))
  by = {aug: [p for p in own if p.aug == aug] for aug in ("crop&flip", "RandAugment", "none")}
  return verdict([
      (difference("RandAugment less crop&flip", by["RandAugment"], by["crop&flip"], key), -1),
      (difference("crop&flip less none", by["crop&flip"],
                  [p for p in by["none"] if p.method == "CLIP"], key), -1)])


def _overfits(points, metric):
  """S14: with few pairs, retrieval gets worse from 8 epochs on."""
  name = "r10" if any(p.metric == "r10" for p in points) else "i2t_r1"
  own = [p for p in _of(points, name, **_PLAIN) if p.epochs > 7]
  if not own:
    return None
  size = min((p.dataset_size for p in own if p.epochs < 9), default=0)
  own = [p for p in own if p.dataset_size == size]
  most = max((p.epochs for p in own), default=0)
  if most < 9:
    return None
  key = lambda p: (p.arch, p.seed)
  return verdict([(difference(f"{most:.3g} epochs less 8 at {short(size)}",
                               [p for p in own if p.epochs == most],
                               [p for p in own if 7 < p.epochs < 9], key), 1)])


def _linear(points, metric):
  """S15: accuracies on shifted sets are a line in that on ImageNet."""
  at = {(p.where, p.metric): 100 - p.error for p in points}
  found = []
  for name in ("R", "Sketch", "V2", "ObjectNet"):
    pairs = [(at[p.where, "zero_shot"], 100 - p.error) for p in _of(points, f"zero_shot_{name}")
             if (p.where, "zero_shot") in at]
    if len(pairs) >= 8:
      found.append((name, float(np.corrcoef(np.array(pairs).T)[0, 1] ** 2)))
  if not found:
    return None
  return (HOLDS if min(r for _, r in found) > 0.95 else FAILS), "; ".join(
      f"{name}: r2 {r:.2f}" for name, r in found)


def _both(*judges):
  """All of several tests."""
  def judge(points, metric):
    judged = [j(points, metric) for j in judges]
    if None in judged:
      return None
    verdicts = [v for v, _ in judged]
    worst = next((v for v in (FAILS, UNTOLD) if v in verdicts), HOLDS)
    return worst, "; ".join(n for _, n in judged)
  return judge


STATEMENTS = {
    "S1": ("seen once, ResNet beats ViT with little data, ViT with much", _resnet),
    "S2": ("seen once, with little data the largest ViT is worse than a smaller one", _small_data),
    "S3": ("the best model grows with compute", _frontier),
    "S4": ("at fixed samples, more data than an eighth of them gains < 1 point", _saturation),
    "S5": ("the best 40%, for 40% of the compute, beat all", _cut),
    "S6": ("which cut is best depends on the metric", _cut_metrics),
    "S7": ("CLIP+DA with half the data matches CLIP", _half_data),
    "S8": ("RandAugment > crop&flip > none where data are seen often", _order),
    "S9": ("augmentation hurts where each is seen once", _method("CLIP+DA", "all", 1, once=True)),
    "S10": ("seen once, SLIP beats CLIP with little data", _method("SLIP", "small", -1, once=True)),
    "S11": ("seen often, SLIP beats CLIP with little data, CLIP+DA beats SLIP with more",
            _both(_method("SLIP", "small", -1), _method("CLIP+DA", "large", -1, than="SLIP"))),
    "S12": ("linear probe: CLIP+DA and SLIP beat CLIP with little data",
            _both(_method("SLIP", "small", -1, name="linear_probe"),
                  _method("CLIP+DA", "small", -1, name="linear_probe"))),
    "S13": ("FLIP is worse than CLIP with little data", _method("FLIP", "small", 1)),
    "S14": ("with few pairs, retrieval gets worse beyond 8 epochs", _overfits),
    "S15": ("accuracy on shifted sets is linear in ImageNet's", _linear),
}
