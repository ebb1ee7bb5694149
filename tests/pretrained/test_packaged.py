"""The package's own format: any model in a folder, in float16."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax import export
from clip_jax.config import call
from clip_jax.data.tokenizer import SentencePiece, train_sentencepiece
from clip_jax.errors import UserError
from clip_jax.inference.loading import describe, load_bundle
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.pretrained import packaged

GOLDEN_SIGLIP = Path(__file__).parents[1] / "golden/open_clip_siglip"
TEXTS = ["a dog", "flag of France", "two cats on a mat"]

GOLDENS = sorted((Path(__file__).parents[1] / "golden/clip_jax").iterdir())


def exported(golden, out):
  assert export.main([f"--model={golden / 'workdir'}", "--format=clip_jax", f"--out={out}"]) == 0
  return out


@pytest.fixture(name="folder", scope="module")
def first(tmp_path_factory):
  return exported(GOLDENS[0], tmp_path_factory.mktemp("packaged"))


@pytest.fixture
def copied(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("golden", GOLDENS, ids=[golden.name for golden in GOLDENS])
def test_embeddings_are_those_of_the_run_to_half_precision(golden, tmp_path):
  loaded = clip_jax.load(exported(golden, tmp_path / "model"))
  expected = np.load(golden / "outputs.npz")
  z_image = loaded.encode_image(list(expected["image"]))
  z_text = loaded.encode_text(expected["texts"].tolist())
  assert (z_image * expected["z_image"]).sum(-1).min() > 0.9999
  assert (z_text * expected["z_text"]).sum(-1).min() > 0.9999
  assert loaded.scale == pytest.approx(float(expected["scale"]), rel=1e-6)
  assert loaded.bias == pytest.approx(float(expected["bias"]), rel=1e-6)


def test_arrays_are_rounded_to_half_precision(folder):
  arrays = load_file(folder / packaged.WEIGHTS)
  original = load_bundle(GOLDENS[0] / "workdir")
  assert {x.dtype.name for x in arrays.values()} == {"float16"}
  for name, x in leaves_by_name(original.params).items():
    np.testing.assert_array_equal(arrays[f"params/{name}"], np.asarray(x).astype(np.float16))


def test_the_tokenizer_goes_along_and_the_folder_can_move(folder, tmp_path):
  """The config of a run has the path of the tokenizer on the machine where it was trained."""
  elsewhere = tmp_path / "own.model"
  train_sentencepiece(iter(TEXTS * 20), str(elsewhere), pieces=40)
  described = describe(folder)
  described.tokenizer.update(call(SentencePiece, model=str(elsewhere), context_length=8))
  expected = SentencePiece(str(elsewhere), context_length=8)(TEXTS)
  packaged.write(described, load_bundle(folder), tmp_path / "model")
  elsewhere.unlink()
  moved = (tmp_path / "model").rename(tmp_path / "moved")
  np.testing.assert_array_equal(load_bundle(moved).tokenizer(TEXTS), expected)


def test_what_the_arrays_do_not_show_is_kept(tmp_path):
  """SigLIP's objective, also if its bias is 0, and how the other library resamples positions."""
  start = GOLDEN_SIGLIP
  described, saved = describe(start), load_bundle(start)
  saved.bias = 0.0
  packaged.write(described, saved, tmp_path / "model")
  found = describe(tmp_path / "model")
  assert described.biased and found.biased
  assert found.position_method == described.position_method == "bicubic"
  assert load_bundle(tmp_path / "model").position_method == "bicubic"


def changed(folder, **changes):
  content = json.loads((folder / packaged.CONFIG).read_text())
  (folder / packaged.CONFIG).write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"format": 2}, "has format 2, but this version reads format 1"),
    ({"scale": -1.0}, "scale or bias is out of range"),
    ({"scale": "1"}, "scale is '1'; expected a number"),
    ({"position_method": "nearest"}, "position_method is not one of bilinear"),
    ({"biased": 1}, "biased is 1; expected"),
    ({"files": ["../secret"]}, "files must be names in the same folder"),
    ({"model": {"fn": "os:system"}}, "os"),
    ({"tokenizer": {"fn": "builtins:open"}}, "builtins"),
  ],
)
def test_a_config_that_is_not_one_of_ours_is_refused(copied, changes, message):
  changed(copied, **changes)
  with pytest.raises(UserError, match=message):
    clip_jax.load(copied)


def test_weights_of_another_model_are_refused(copied):
  arrays = load_file(copied / packaged.WEIGHTS)
  name = next(iter(arrays))
  arrays[name] = np.zeros((3, 5), np.float16)
  save_file(arrays, copied / packaged.WEIGHTS)
  with pytest.raises(UserError, match=name):
    clip_jax.load(copied)


def test_truncated_weights_are_named(copied):
  content = (copied / packaged.WEIGHTS).read_bytes()
  (copied / packaged.WEIGHTS).write_bytes(content[: len(content) // 2])
  with pytest.raises(UserError, match="truncated"):
    clip_jax.load(copied)


def test_weights_beyond_half_precision_are_refused(folder, tmp_path):
  saved = packaged.read(folder)
  described = packaged.describe(folder)
  saved.params["image_projection"]["kernel"][0, 0] = 1e6
  with pytest.raises(UserError, match="values up to 1e\\+06, which float16 cannot hold"):
    packaged.write(described, saved, tmp_path / "model")
