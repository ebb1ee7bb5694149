"""Random damage to a checkpoint's files gives a model or one message, never another exception."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest

from clip_jax.data.checkpoint_tokenizer import CleanedTokenizer, MissingTokenizer
from clip_jax.errors import UserError
from clip_jax.inference.loading import load_bundle
from mutations import damaged_bytes, damaged_json

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = [
  (path.parent.name, path.name)
  for folder in ("huggingface_clip", "huggingface_siglip", "open_clip_resnet", "open_clip_siglip")
  for path in sorted((GOLDEN / folder).iterdir())
  if path.suffix in (".json", ".model")
]


ROUNDS = pytest.mark.parametrize("rounds", [40, pytest.param(200, marks=pytest.mark.slow)])


def loads(where):
  """Whether there is a model; a UserError with one message is the only accepted exception."""
  try:
    tokenizer = load_bundle(where).tokenizer
    inner = tokenizer.tokenizer if isinstance(tokenizer, CleanedTokenizer) else tokenizer
    if not isinstance(inner, MissingTokenizer):
      assert tokenizer(["a dog", ""]).shape == (2, tokenizer.context_length)
    return True
  except UserError as error:
    assert len(str(error)) < 3000
    return False


@ROUNDS
@pytest.mark.parametrize("folder, name", FILES)
def test_random_damage_to_a_small_file(folder, name, rounds, tmp_path):
  where = tmp_path / "model"
  shutil.copytree(GOLDEN / folder, where)
  assert loads(where)
  damage = damaged_json if name.endswith(".json") else damaged_bytes
  good = (where / name).read_bytes()
  loaded = 0
  for damaged in damage(good, rounds):
    (where / name).write_bytes(damaged)
    loaded += loads(where)
  assert loaded < 0.8 * rounds


@ROUNDS
@pytest.mark.parametrize("name", ["lit.npz", "siglip.npz"])
def test_random_damage_to_weights_in_an_npz(name, rounds, tmp_path):
  for damaged in damaged_bytes((GOLDEN / "big_vision" / name).read_bytes(), rounds):
    (tmp_path / name).write_bytes(damaged)
    loads(tmp_path / name)


@ROUNDS
def test_random_arrays_in_an_npz(rounds, tmp_path):
  """The file is intact, but arrays have other shapes and dtypes."""
  rng = np.random.default_rng(0)
  with np.load(GOLDEN / "big_vision/siglip.npz") as file:
    arrays = dict(file)
  odd = (np.array("x"), np.array(3), np.zeros((0, 4)), np.zeros(1, "V2"), np.array([1j]), np.eye(9))
  loaded = 0
  for _ in range(rounds):
    made = dict(arrays)
    for name in rng.choice(list(arrays), rng.integers(1, 3)):
      kind = rng.integers(4)
      if kind == 0:
        made[name] = odd[rng.integers(len(odd))]
      elif kind == 1:
        del made[name]
        made[f"{name}2"] = arrays[name]
      elif kind == 2:
        made[name] = arrays[name][None]
      else:
        made[name] = arrays[name][..., :-1] if arrays[name].ndim else np.array(np.nan)
    np.savez(tmp_path / "x.npz", **made)
    loaded += loads(tmp_path / "x.npz")
  assert loaded < 0.5 * rounds


def test_an_enormous_model_is_refused_before_it_is_allocated(tmp_path):
  where = tmp_path / "model"
  shutil.copytree(GOLDEN / "huggingface_clip", where)
  config = json.loads((where / "config.json").read_text())
  config["text_config"].update(vocab_size=2**30, hidden_size=2**16)
  (where / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="model of 70,.* parameters, but the file holds"):
    load_bundle(where)


def test_an_index_cannot_name_files_elsewhere(tmp_path):
  where = tmp_path / "model"
  shutil.copytree(GOLDEN / "huggingface_clip", where)
  (where / "model.safetensors").rename(tmp_path / "model.safetensors")
  index = {"weight_map": {"logit_scale": "../model.safetensors"}}
  (where / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(UserError, match="not a file next to it"):
    load_bundle(where)
