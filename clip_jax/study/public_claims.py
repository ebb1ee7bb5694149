"""Judges the paper's claims on runs that others published, where they speak about them.

Each public number is one run, so differences are compared with the noise of two runs instead of
a t-test over seeds.
"""

from collections.abc import Callable, Sequence
import itertools
import math
from typing import Any

import numpy as np

from clip_jax.study.claim_checks import ClaimCheck
from clip_jax.study.claims import CLAIMS
from clip_jax.study.designs import short
from clip_jax.study.evidence import Observation, observations
from clip_jax.study.hyperparameters import sweep_runs
from clip_jax.study.paired_tests import FAILS, HOLDS, INCONCLUSIVE

# Points by which two runs of the same kind may differ: 1.645 sqrt(2) times 0.4, the scatter of
# single runs around the pooled law on DataComp-1.4B.
NOISE = 0.9


# Claims that the paper does not make.
FURTHER_CLAIMS = {
  "batch": "a batch far above the best for its samples loses accuracy",
  "captioning": "for the same samples, captioning beats plain CLIP",
}


def check_public_claims() -> list[ClaimCheck]:
  """Tests the claims that public runs speak about; those of the paper's own are left out."""
  runs = [r for r in observations("zero_shot") if r.corpus != "WebLI"]
  found = []
  for name, data, check in _CHECKS:
    verdict, numbers = check(runs)
    claim = FURTHER_CLAIMS[name] if name in FURTHER_CLAIMS else CLAIMS[name][0]
    found.append(ClaimCheck(name, claim, data, verdict, numbers))
  return found


def _select(runs: Sequence[Observation], **factors: Any) -> list[Observation]:
  fits = lambda r: all(
    (r.shape.name if k == "model" else getattr(r, k)) == v for k, v in factors.items()
  )
  return [r for r in runs if fits(r)]


def _tuned(runs):
  return _select(runs, corpus="DataComp-1.4B", protocol="tuned", objective="clip")


def _verdict(gains: Sequence[float], numbers: Sequence[str]) -> tuple[str, str]:
  """HOLDS if the mean gain is above the noise of a mean, FAILS if it is below minus that."""
  mean, noise = float(np.mean(gains)), NOISE / math.sqrt(len(gains))
  verdict = HOLDS if mean > noise else FAILS if mean < -noise else INCONCLUSIVE
  return verdict, "; ".join(numbers)


def _largest_on_little(runs):
  """S2: after 1.28M and 3.07M samples, H-16 against the smaller model with as many patches."""
  own, gains, numbers = _tuned(runs), [], []
  for samples in (1.28e6, 3.072e6):
    large, small = (
      _select(own, samples=samples, model=name)[0].accuracy for name in ("H-16", "S-16")
    )
    # Accuracies are near zero here, so noise is judged on their ratio, as points at 50%.
    gains.append(25 * math.log(small / large))
    numbers.append(f"H/16 minus S/16 at {short(int(samples))}: error {small - large:+.1f}")
  return _verdict(gains, numbers)


def _size_grows(runs):
  """S3: size of the best model at a tenfold and hundredfold compute."""
  own, best = _tuned(runs), []
  compute = lambda r: 3e9 * r.shape.forward_gflops * r.samples
  for budget in (1e17, 1e18, 1e19, 1e20, 1e21):
    near = [r for r in own if budget / 2 < compute(r) < budget * 2]
    # Move every run to the budget by the local slope, about 3 points for a factor of 2.
    best.append(max(near, key=lambda r: r.accuracy + 3 * math.log2(budget / compute(r))))
  sizes = [r.shape.forward_gflops for r in best]
  grows = all(b >= a for a, b in itertools.pairwise(sizes)) and sizes[-1] > 2 * sizes[0]
  names = "; ".join(f"{10**k:.0e} FLOP: {r.shape.name}" for k, r in zip(range(17, 22), best))
  return (HOLDS if grows else INCONCLUSIVE), names


def _saturates(runs):
  """S4: at about 3B samples, LAION-400M against LAION-2B, and LAION-80M against both."""
  gains, numbers = [], []
  for model in ("B-32", "B-16", "L-14"):
    at = {}
    for corpus in ("LAION-80M", "LAION-400M", "LAION-2B"):
      own = _select(runs, corpus=corpus, model=model, method="CLIP")
      at[corpus] = next(r.accuracy for r in own if 2.4e9 < r.samples < 2.6e9)
    gains.append(1 - (at["LAION-2B"] - at["LAION-400M"]))
    numbers.append(
      f"{model}: 400M minus 2B {at['LAION-2B'] - at['LAION-400M']:+.1f}, 80M minus 2B "
      f"{at['LAION-2B'] - at['LAION-80M']:+.1f}"
    )
  return _verdict(gains, numbers)


def _filters(runs):
  """S5: CommonPool's best 30% by CLIP score against all of it at the same samples."""
  gains, numbers = [], []
  for samples in (1.28e8, 1.28e9, 1.28e10):
    cut, whole = (
      _select(runs, corpus="CommonPool", samples=samples, quality=q)[0] for q in (30.0, 100.0)
    )
    gains.append(cut.accuracy - whole.accuracy)
    numbers.append(f"best 30% minus all at {short(int(samples))} samples: {-gains[-1]:+.1f}")
  verdict, text = _verdict(gains, numbers)
  # The claim is about less compute, and these runs have the same.
  return (INCONCLUSIVE if verdict == HOLDS else verdict), f"{text}; no run at less compute"


def _slip(metric: str) -> Callable:
  def check(runs):
    own = runs if metric == "zero_shot" else observations(metric)
    gains, numbers = [], []
    for one in _select(own, method="SLIP"):
      if one.corpus == "WebLI":
        continue
      (plain,) = _select(own, method="CLIP", corpus=one.corpus, model=one.shape.name)
      gains.append(one.accuracy - plain.accuracy)
      numbers.append(f"SLIP minus CLIP, {one.shape.name} on {one.corpus}: {-gains[-1]:+.1f}")
    verdict, text = _verdict(gains, numbers)
    # The rest of these claims is about CLIP+DA, of which no public run says anything.
    return (INCONCLUSIVE if verdict == HOLDS else verdict), text + "; no run of CLIP+DA"

  return check


def _flip(runs):
  """S13 is about little data; FLIP's paper has much."""
  flip, plain = (
    _select(runs, corpus="LAION-400M", method=m, model="L-16")[0] for m in ("FLIP", "CLIP")
  )
  gain = flip.accuracy - plain.accuracy
  return INCONCLUSIVE, f"FLIP minus CLIP, L/16 on LAION-400M: {-gain:+.1f}; no run on little data"


def _linear(runs):
  """S15: squared correlation of the accuracy on each shifted set with that on ImageNet."""
  key = lambda r: (r.corpus, r.shape.name, r.samples, r.steps)
  base = {key(r): r.accuracy for r in runs}
  found = {}
  for name in ("R", "Sketch", "V2", "ObjectNet", "A"):
    own = [r for r in observations(f"zero_shot_{name}") if r.corpus.startswith("LAION")]
    pairs = np.array([(base[key(r)], r.accuracy) for r in own])
    found[name] = float(np.corrcoef(pairs.T)[0, 1] ** 2)
  straight = min(value for name, value in found.items() if name != "A") > 0.95
  return (HOLDS if straight else FAILS), "; ".join(f"{n}: r2 {v:.2f}" for n, v in found.items())


def _captioning(runs):
  """MaMMUT against CLIP with the same image tower, at 128M and 3.07B samples."""
  gains, numbers = [], []
  for samples in (1.28e8, 3.072e9):
    for model in ("B-32", "L-14"):
      both = [
        _select(
          runs,
          corpus="DataComp-1.4B",
          protocol="tuned",
          objective=objective,
          samples=samples,
          model=model,
        )[0].accuracy
        for objective in ("mammut", "clip")
      ]
      gains.append(both[0] - both[1])
      numbers.append(f"MaMMUT minus CLIP, {model} at {short(int(samples))}: {-gains[-1]:+.1f}")
  return _verdict(gains, numbers)


def _batch(_):
  """The best run of the sweep with batch 16,384 against that with 90,624, at 1.28B samples."""
  runs, gains, numbers = sweep_runs(), [], []
  own = runs["samples"] == 1.28e9
  for parameters in sorted(set(runs["parameters"][own])):
    best = {
      batch: runs["accuracy"][own & (runs["parameters"] == parameters) & (runs["batch"] == batch)]
      for batch in (16_384, 90_624)
    }
    if all(len(values) >= 3 for values in best.values()):
      gains.append(float(best[16_384].max() - best[90_624].max()))
      numbers.append(f"90k minus 16k, {parameters / 1e6:.0f}M parameters: {gains[-1]:+.1f}")
  return _verdict(gains, numbers)


_CHECKS: tuple[tuple[str, str, Callable], ...] = (
  ("S2", "DataComp-1.4B", _largest_on_little),
  ("S3", "DataComp-1.4B", _size_grows),
  ("S4", "LAION-80M/400M/2B", _saturates),
  ("S5", "CommonPool", _filters),
  ("S11", "YFCC15M, CC3M, CC12M", _slip("zero_shot")),
  ("S12", "YFCC15M", _slip("linear_probe")),
  ("S13", "LAION-400M", _flip),
  ("S15", "LAION-80M/400M/2B", _linear),
  ("batch", "DataComp-1.4B", _batch),
  ("captioning", "DataComp-1.4B", _captioning),
)
