"""Mixes of models: their arrays, the choice between them, and what is written."""

import json
import math

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.errors import UserError
from clip_jax.inference.loading import load_bundle
from clip_jax.mix.__main__ import main
from clip_jax.mix.mixture_of_models import mixed
from golden_checkpoints import FOLDER, GOLDENS
from tiny import largest_difference

RUN = FOLDER / "clip_jax/0.1.0/workdir"
SUITE = """
from ml_collections.config_dict import ConfigDict
from clip_jax.config import call
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.evaluators.retrieval import Retrieval

def get_config():
  return ConfigDict({"val": call(Retrieval, source=call(OpenClipart, split="val"), limit=32)})
"""


def test_a_mix_is_the_weighted_mean_of_parameters():
  one = load_bundle(GOLDENS["huggingface_clip"][0])
  other = load_bundle(GOLDENS["huggingface_clip"][0])
  other.params = jax.tree.map(lambda x: 3 * x, other.params)
  other.scale, one.bias, other.bias = 4 * one.scale, 1.0, -3.0
  found = mixed([one, other], (0.75, 0.25))
  assert largest_difference(found.params, jax.tree.map(lambda x: 1.5 * x, one.params)) < 1e-5
  assert found.scale == pytest.approx(one.scale * math.sqrt(2)) and found.bias == 0.0


def test_the_line_between_two_runs_is_evaluated_and_the_best_mix_written(tmp_path, capsys):
  suite = tmp_path / "suite.py"
  suite.write_text(SUITE)
  metrics = "val/image_to_text_r10,val/text_to_image_r10"
  arguments = [f"--models={RUN},{RUN}", "--alpha=0,0.5", f"--suite={suite}"]
  arguments += [f"--metrics={metrics}", f"--out={tmp_path / 'out'}"]
  arguments += [f"--results={tmp_path / 'r.json'}", f"--picture={tmp_path / 'p.png'}"]
  pytest.importorskip("matplotlib")
  assert main(arguments) == 0
  content = json.loads((tmp_path / "r.json").read_text())
  assert [mix["weights"] for mix in content["mixes"]] == [[1, 0], [0.5, 0.5]]
  assert content["mixes"][0]["metrics"] == content["mixes"][1]["metrics"] and content["best"] == 0
  assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
  assert "alpha=0.5" in capsys.readouterr().out
  texts = ["a flag", "a red car"]
  again, start = clip_jax.load(tmp_path / "out"), clip_jax.load(RUN)
  np.testing.assert_allclose(again.encode_text(texts), start.encode_text(texts), atol=1e-6)
  assert again.scale == pytest.approx(start.scale)
  with pytest.raises(UserError, match="has checkpoints already"):
    main(arguments)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--models=A"], "Set --models=A,B"),
    (["--models=A,B", "--alpha=2"], "--alpha=2 is not FROM:TO:STEP"),
    (["--models=A,B", "--alpha=0:1:0"], "--alpha=0:1:0 is not FROM:TO:STEP"),
    (["--models=A,B,C", "--alpha=0.5"], "is for two models; of 3, the mean"),
    (["--models=A,B", "--format=npz"], "--format=npz is not one of run, open_clip"),
    (["--models=A,B"], "Set --suite=FILE"),
  ],
)
def test_mistakes_in_the_command_are_explained(arguments, message):
  with pytest.raises(UserError, match=message):
    main(arguments)


def test_models_that_differ_are_refused(tmp_path):
  suite = tmp_path / "suite.py"
  suite.write_text(SUITE)
  models = f"{RUN},{GOLDENS['huggingface_clip'][0]}"
  with pytest.raises(UserError, match="is of a different model.*\n.*(.|\n)*same architecture as"):
    main([f"--models={models}", f"--suite={suite}", "--metrics=val/x", f"--out={tmp_path / 'o'}"])
