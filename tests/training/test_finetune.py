"""Fine-tuning from any checkpoint keeps its preprocessing, tokenizer and logit scale."""

from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

import clip_jax
from clip_jax import export
from clip_jax.cli.config_files import load_function
from clip_jax.config import call
from clip_jax.data.resize_then_crop import ResizeThenCrop
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.errors import UserError
from clip_jax.inference.loading import describe
from clip_jax.pretrained.tuning_view import tuning_view
from clip_jax.training.setup import build_setup
from golden_checkpoints import FOLDER, GOLDENS, TEXTS, load_golden

CONFIG = Path(__file__).parents[2] / "configs/finetune.py"


def tuning(model, **train):
  """The tuning config of a model on the bundled pairs, which changes no parameter."""
  config = load_function(f"{CONFIG}:{model}", "get_config")()
  config.data.source = call(OpenClipart, split="val")
  config.data.batch_size, config.data.threads = 8, 1
  config.train.epochs, config.train.steps, config.optimizer.learning_rate = None, 2, 0.0
  config.train.update(train)
  return config


def pictures():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, shape).astype(np.uint8) for shape in ((50, 90, 3), (70, 40, 3))]


def assert_same_model(ours, theirs):
  for picture in pictures():
    np.testing.assert_array_equal(ours.preprocess(picture), theirs.preprocess(picture))
  z, expected = ours.encode_image(pictures()), theirs.encode_image(pictures())
  np.testing.assert_allclose(z, expected, atol=1e-5)
  np.testing.assert_array_equal(ours.tokenize(TEXTS), theirs.tokenize(TEXTS))
  np.testing.assert_allclose(ours.encode_text(TEXTS), theirs.encode_text(TEXTS), atol=1e-5)
  assert ours.scale == pytest.approx(theirs.scale, rel=1e-5)
  assert ours.bias == pytest.approx(theirs.bias, rel=1e-5)


# Of these two, open_clip has no size of timm's for the second one.
@pytest.mark.parametrize(
  "name, form",
  [
    ("huggingface_clip", "huggingface"),
    pytest.param("open_clip_siglip", None, marks=pytest.mark.slow),
  ],
)
def test_a_tuned_model_is_used_as_the_one_that_it_started_from(name, form, tmp_path):
  config = tuning(GOLDENS[name][0])
  assert clip_jax.run(config, tmp_path / "run") == 0
  tuned = clip_jax.load(tmp_path / "run")
  assert_same_model(tuned, load_golden(name))
  # Tune the tuned run: its own checkpoint is described without the first one.
  again = tuning(tmp_path / "run")
  assert again.data.views.preprocess == config.data.views.preprocess
  assert again.objective.fn == config.objective.fn
  assert again.data.views.images.image == config.data.views.images.image
  if form:
    arguments = [f"--model={tmp_path / 'run'}", f"--format={form}", f"--out={tmp_path / 'out'}"]
    assert export.main(arguments) == 0
    assert_same_model(clip_jax.load(tmp_path / "out"), load_golden(name))


def test_describing_a_checkpoint_starts_no_backend():
  """Processes of a run are connected after the config is made, and a backend must not exist yet."""
  names = ("huggingface_clip", "open_clip_siglip", "big_vision_siglip")
  models = [str(GOLDENS[name][0]) for name in names] + [str(FOLDER / "clip_jax/0.1.0/workdir")]
  code = f"""
from clip_jax.cli.config_files import load_function
for model in {models!r}:
  load_function(f"{CONFIG}:{{model}}", "get_config")()
from jax._src import xla_bridge
assert not xla_bridge._backends
"""
  subprocess.run([sys.executable, "-c", code], check=True)


def test_padded_images_are_trained_on_as_they_are_evaluated():
  start = describe(GOLDENS["open_clip_siglip"][0])
  start.preprocess.resize_mode = "longest"
  assert tuning_view(start).crop == start.preprocess


def test_preprocessing_of_another_size_is_refused():
  config = tuning(GOLDENS["huggingface_clip"][0])
  config.data.views.preprocess = call(ResizeThenCrop, size=224)
  with pytest.raises(UserError, match="makes images of 224 x 224, but the image tower takes 32"):
    build_setup(config)


def test_a_logit_needs_a_model_and_must_be_within_its_bound(tmp_path):
  config = tuning(GOLDENS["huggingface_clip"][0], init_from=None)
  with pytest.raises(UserError, match="init_logit needs a trained model"):
    build_setup(config)
  config = tuning(GOLDENS["huggingface_clip"][0])
  config.objective.max_scale = 5.0
  with pytest.raises(UserError, match=r"scale is 9.97.*max_scale=5.*objective.max_scale to at lea"):
    clip_jax.run(config, tmp_path)


def test_a_config_without_a_model_says_how_to_name_one():
  with pytest.raises(UserError, match="Which model should be fine-tuned.*finetune.py:MODEL"):
    load_function(str(CONFIG), "get_config")()
