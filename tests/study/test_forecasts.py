"""Tests of `study predict`: its answers, and what it refuses."""

import json
import subprocess
import sys

import pytest

from clip_jax.errors import UserError
from clip_jax.study import evidence, forecasts
from clip_jax.study.__main__ import main
from clip_jax.study.model_shapes import model_shape

B32 = ("predict", "--arch=ViT-B/32", "--pairs=1.4B", "--samples=128M")


def answer(capsys, *arguments):
  main([*arguments, "--json"])
  return json.loads(capsys.readouterr().out)


def test_a_known_run_is_predicted_and_named(capsys):
  found = answer(capsys, *B32, "--corpus=datacomp")
  assert found["low"] < 40.4 < found["high"] and found["accuracy"] == pytest.approx(40.4, abs=1)
  assert found["nearest"]["source"] == "arXiv 2506.04598"
  assert found["error"] == pytest.approx(100 - found["accuracy"])
  main([*B32, "--corpus=datacomp"])
  assert "ImageNet zero-shot: 4" in capsys.readouterr().out


def test_the_papers_protocol_is_that_of_its_corpus(capsys):
  found = answer(capsys, "predict", "--arch=B/32", "--pairs=50M", "--samples=50M", "--corpus=webli")
  assert found["accuracy"] == pytest.approx(9.4, abs=2) and "batch 16384" in found["protocol"]
  small = answer(
    capsys,
    "predict",
    "--arch=B/32",
    "--pairs=50M",
    "--samples=50M",
    "--corpus=webli",
    "--batch=4096",
  )
  assert small["accuracy"] > found["accuracy"]


def test_objectives_and_metrics_have_their_own_answers(capsys):
  both = answer(capsys, *B32, "--corpus=datacomp", "--metric=zero_shot,t2i_r5")
  assert [b["metric"] for b in both] == ["zero_shot", "t2i_r5"]
  captioning = answer(capsys, *B32, "--corpus=datacomp", "--objective=captioning")
  assert captioning["accuracy"] == pytest.approx(43.1, abs=1)
  for metric in ("shot5", "linear_probe", "i2t_r1"):
    wide = answer(capsys, *B32, "--corpus=datacomp", f"--metric={metric}")
    assert wide["high"] - wide["low"] > 5 and wide["nearest"]["corpus"] == "WebLI"


def test_wrong_hyperparameters_cost_accuracy(capsys):
  best = answer(capsys, *B32, "--corpus=datacomp")
  large = answer(capsys, *B32, "--corpus=datacomp", "--batch=90000")
  hot = answer(capsys, *B32, "--corpus=datacomp", "--batch=8192", "--learning_rate=0.02")
  assert large["accuracy"] < best["accuracy"] - 1 and hot["accuracy"] < best["accuracy"] - 1


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("--pairs=1M", "--samples=1M"), "needs --pairs, --samples, and --arch"),
    (("--arch=B/32", "--pairs=-5", "--samples=1M"), "pairs=-5 must be above 0; the evidence"),
    (("--arch=B/32", "--pairs=1M", "--samples=x"), "--samples=x is not a number"),
    (("--arch=B/32", "--pairs=1M", "--samples=1M", "--corpus=moon"), "no corpus 'moon'; known"),
    (("--arch=B/32", "--pairs=1M", "--samples=1M", "--objective=x"), "no objective 'x'"),
    (("--arch=B/32", "--pairs=1M", "--samples=1M", "--metric=x"), "no evidence about 'x'"),
    (("--arch=B/32", "--pairs=1M", "--samples=1M", "--batch=2M"), "larger than the 1e.06 samples"),
    (("--arch=B/32", "--pairs=1M", "--samples=1M", "--quality=0"), "quality=0 must be"),
    (("--arch=B/32", "--parameters=1M", "--pairs=1M", "--samples=1M"), "but not both"),
  ],
)
def test_mistakes_are_reported(arguments, message):
  with pytest.raises(UserError, match=message):
    main(["predict", *arguments])


def test_nothing_is_said_far_from_all_evidence():
  for pairs, samples in ((10, 1e7), (1e7, 10), (1e13, 1e13)):
    with pytest.raises(evidence.NoEvidence, match="Nothing can be said") as end:
      forecasts.predict(model_shape("B/32"), pairs, samples)
    assert end.value.exit_code == 3


def test_predictions_and_advice_start_without_jax():
  code = (
    "import sys\nfrom clip_jax.study.__main__ import main\n"
    "main(['predict', '--arch=B/32', '--pairs=10M', '--samples=100M'])\n"
    "main(['advise', '--pairs=10M', '--samples=100M'])\n"
    "assert 'jax' not in sys.modules, 'jax was imported'"
  )
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_laion_is_the_member_with_as_many_pairs():
  assert forecasts.corpus_named("laion", 8.1e7) == "LAION-80M"
  assert forecasts.corpus_named("laion", 2e9) == "LAION-2B"
  assert forecasts.corpus_named("laion", 1e7) == "LAION"
  law = forecasts.stored_law("zero_shot")
  ask = lambda corpus: law([forecasts.question(model_shape("B/32"), 1e7, 1e8, corpus=corpus)])[0]
  assert ask("laion").deviation < ask("").deviation
