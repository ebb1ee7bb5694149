"""Tests of the claims on public runs, against numbers of their papers."""

from clip_jax.study import public_claims
from clip_jax.study.__main__ import main
from clip_jax.study.paired_tests import HOLDS, INCONCLUSIVE


def test_verdicts_rest_on_the_published_numbers():
  found = {c.name: c for c in public_claims.check_public_claims()}
  # ViT-B/32 at 2.56B samples: 57.4% on LAION-2B, 57.1% on LAION-400M, 51.9% on LAION-80M.
  assert "B-32: 400M minus 2B +0.2, 80M minus 2B +5.4" in found["S4"].numbers
  assert found["S4"].verdict == HOLDS
  # 42.8 and 37.6% on YFCC15M.
  assert "SLIP minus CLIP, B-16 on YFCC15M: -5.2" in found["S11"].numbers
  assert found["S11"].verdict == INCONCLUSIVE and "no run of CLIP+DA" in found["S11"].numbers
  assert "1e+17 FLOP: S-32" in found["S3"].numbers and found["S3"].verdict == HOLDS
  assert "V2: r2 1.00" in found["S15"].numbers and found["S15"].verdict == HOLDS


def test_batch_and_captioning_are_judged_too():
  found = {c.name: c for c in public_claims.check_public_claims()}
  # 57.8 and 51.8% with L/14 after 128M samples.
  assert "MaMMUT minus CLIP, L-14 at 128M: -6.0" in found["captioning"].numbers
  assert found["captioning"].verdict == HOLDS
  # S/32: 53.12% with batch 16,384 and 51.61% with 90,624.
  assert "63M parameters: +1.5" in found["batch"].numbers


def test_the_command_prints_them_without_runs(capsys):
  main(["verdicts", "--public"])
  assert "LAION-80M/400M/2B" in capsys.readouterr().out


def test_a_gain_within_the_noise_decides_nothing():
  assert public_claims._verdict([0.3, -0.2], [])[0] == INCONCLUSIVE
  assert public_claims._verdict([2.0, 1.5], [])[0] == HOLDS
