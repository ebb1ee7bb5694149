"""Loading models, and the errors when there is none to load."""

import builtins
import json
from pathlib import Path
import shutil
import subprocess
import sys

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.inference.loading import load, load_bundle
from clip_jax.model.transfer import resample_positions
from golden_checkpoints import FOLDER, GOLDENS

ROOT = Path(__file__).parents[2]


def test_a_path_without_a_model_is_an_error_that_lists_the_known_formats(tmp_path):
  with pytest.raises(
    UserError,
    match="(?s)No model found in .*no such file.* Expected one of:.*"
    "workdir.*open_clip_model.safetensors.*model.safetensors.*npz.*hf-hub",
  ):
    load_bundle(tmp_path / "nowhere")
  (tmp_path / "notes.txt").write_text("none")
  with pytest.raises(UserError, match="It contains notes.txt. Expected one of"):
    load_bundle(tmp_path)
  with pytest.raises(UserError, match="no such file or directory"):
    load_bundle(tmp_path / "gone.npz")


def test_a_config_without_weights_is_an_error(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(
    UserError,
    match="a config.json, but no checkpoint and no weights.*"
    "wait for.*download model.safetensors too",
  ):
    load_bundle(tmp_path)
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(UserError, match="The run in .* has not saved a checkpoint yet. Wait for one"):
    load_bundle(tmp_path)


@pytest.mark.parametrize(
  "name, target",
  [
    ("open_clip_pytorch_model.bin", "open_clip_model.safetensors"),
    ("pytorch_model.bin", "model.safetensors"),
    ("ViT-B-32.pt", "open_clip_model.safetensors"),
  ],
)
def test_pickles_are_refused_with_a_script_that_converts_them(name, target, tmp_path):
  (tmp_path / name).write_bytes(b"\x80\x04")
  (tmp_path / "open_clip_config.json").write_text("{}")
  for where in (tmp_path, tmp_path / name):
    with pytest.raises(UserError) as e:
      load_bundle(where)
    assert f"{tmp_path / name} is a pickle" in str(e.value)
    assert f"save_file(state, {str(tmp_path / target)!r})" in str(e.value)


def test_a_missing_huggingface_hub_is_an_error_that_names_the_package(monkeypatch):
  real = builtins.__import__

  def absent(name, *args, **kwargs):
    if name == "huggingface_hub":
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", absent)
  with pytest.raises(UserError, match="not installed: pip install huggingface_hub"):
    load_bundle("hf-hub:example/tiny")


CODE = """
import sys
from clip_jax.errors import UserError
from clip_jax.inference.loading import load_bundle
saved = load_bundle("hf-hub:example/tiny")
print(saved.model.embed_dim, saved.scale)
try:
  load_bundle("hf-hub:example/other")
except UserError as e:
  print(e)
"""


def test_a_hub_repository_is_read_from_the_cache(tmp_path):
  """A new process reads a cache in huggingface_hub's layout, without a network."""
  repository = tmp_path / "hub/models--example--tiny"
  shutil.copytree(GOLDENS["huggingface_clip"][0], repository / "snapshots/0123abcd")
  (repository / "refs").mkdir()
  (repository / "refs/main").write_text("0123abcd")
  done = subprocess.run(
    [sys.executable, "-c", CODE],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
    env={
      "HF_HOME": str(tmp_path),
      "HF_HUB_OFFLINE": "1",
      "JAX_PLATFORMS": "cpu",
      "PATH": "/usr/bin:/bin",
      "HOME": str(tmp_path),
    },
  )
  first, rest = done.stdout.split("\n", 1)
  assert first.startswith("24 9.97")
  assert rest.startswith("Cannot download hf-hub:example/other: ")


def test_a_config_may_only_call_trusted_modules(tmp_path):
  from clip_jax.config import from_json

  text = json.dumps({"model": {"fn": "os:system", "command": "true"}})
  with pytest.raises(UserError, match="calls os:system, which is not part of clip_jax.*trust="):
    from_json(text)


def test_goldens_are_small():
  size = lambda folder: sum(p.stat().st_size for p in folder.rglob("*"))
  runs = FOLDER / "clip_jax"
  assert size(FOLDER) - size(runs) < 5_000_000
  assert all(size(run) < 2_000_000 for run in runs.iterdir())
  assert all(
    np.isfinite(dict(np.load(outputs))["z_image"]).all() for _, outputs in GOLDENS.values()
  )


@pytest.mark.parametrize("name", ["open_clip_vit", "open_clip_resnet", "huggingface_siglip"])
def test_a_model_is_adapted_to_another_image_size(name):
  small, large = load(FOLDER / name), load(FOLDER / name, image_size=64)
  image = np.random.default_rng(0).integers(0, 256, (2, 70, 90, 3), np.uint8)
  assert large.model.image.image_size == (64, 64)
  assert large.preprocess(image[0]).shape == (64, 64, 3)
  assert large.encode_image(list(image)).shape == small.encode_image(list(image)).shape
  at = lambda model: np.asarray(
    (model.image.head if name == "open_clip_resnet" else model.image).positions[...]
  )
  first = len(at(small.model)) - small.model.image.grid[0] * small.model.image.grid[1]
  assert first == (name != "huggingface_siglip")
  np.testing.assert_array_equal(at(large.model)[:first], at(small.model)[:first])
  np.testing.assert_allclose(
    at(large.model)[first:],
    resample_positions(
      at(small.model)[first:],
      small.model.image.grid,
      large.model.image.grid,
      method="torch_bicubic" if name == "huggingface_siglip" else "bicubic",
    ),
    atol=1e-6,
  )
  again = load(FOLDER / name, image_size=small.model.image.image_size)
  np.testing.assert_array_equal(again.encode_image(list(image)), small.encode_image(list(image)))


def test_a_model_can_be_loaded_in_another_dtype():
  pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
  where = FOLDER / "huggingface_clip"
  texts = ["a dog", "two cats and a dog"]
  both = lambda embedder: np.concatenate(
    [embedder.encode_image(pixels), embedder.encode_text(texts)]
  )
  exact, rounded = both(load(where)), both(load(where, dtype="bfloat16"))
  assert 1e-5 < np.abs(exact - rounded).max() < 0.02
  # On the processors that tests run as, "auto" is float32.
  np.testing.assert_array_equal(both(load(where, dtype="auto")), exact)
  with pytest.raises(UserError, match="Unknown dtype='bf16'; choose from auto, bfloat16"):
    load(where, dtype="bf16")
