"""Runs and exports that earlier versions wrote load, resume, evaluate and export."""

import functools
import inspect
import json
from pathlib import Path
import shutil

from jax import export as jax_export
import numpy as np
import pytest

import clip_jax
from clip_jax import config as config_lib, evaluate, export, old_names
from clip_jax.config import from_json, to_saved

GOLDENS = sorted((Path(__file__).parents[1] / "golden/clip_jax").iterdir())
IDS = [folder.name for folder in GOLDENS]
EVERY = pytest.mark.parametrize("folder", GOLDENS, ids=IDS)
EXPORTS = [
  pytest.param(path, id=f"{folder.name}-{path.stem}")
  for folder in GOLDENS
  for path in sorted(folder.iterdir())
  if path.name in ("open_clip", "huggingface", "big_vision.npz", "stablehlo")
]


@functools.cache
def outputs(folder):
  return dict(np.load(folder / "outputs.npz"))


def workdir_of(folder, tmp_path):
  """A copy, because resuming writes to it."""
  return shutil.copytree(folder / "workdir", tmp_path / "workdir")


def config_of(workdir):
  return from_json((workdir / "config.json").read_text())


def check_embeddings(embedder, folder, prefix=""):
  expected = outputs(folder)
  z_image = embedder.encode_image(list(expected["image"]))
  z_text = embedder.encode_text(expected["texts"].tolist())
  np.testing.assert_allclose(z_image, expected[f"{prefix}z_image"], atol=1e-5)
  np.testing.assert_allclose(z_text, expected[f"{prefix}z_text"], atol=1e-5)
  assert embedder.scale == pytest.approx(float(expected[f"{prefix}scale"]), rel=1e-6)
  assert embedder.bias == pytest.approx(float(expected[f"{prefix}bias"]), rel=1e-6)


@EVERY
def test_a_saved_run_loads_with_the_same_embeddings(folder):
  check_embeddings(clip_jax.load(folder / "workdir"), folder)


@EVERY
def test_a_saved_run_resumes_where_it_stopped(folder, tmp_path):
  workdir = workdir_of(folder, tmp_path)
  before = (workdir / "metrics.jsonl").read_text()
  config = config_of(workdir)
  done = config.train.steps
  config.train.steps, config.evaluators, config.final_evaluators = done + 1, {}, {}
  assert clip_jax.run(config, workdir) == 0
  after = (workdir / "metrics.jsonl").read_text()
  assert after.startswith(before)
  lines = list(map(json.loads, after.removeprefix(before).splitlines()))
  assert [line["step"] for line in lines if "train/loss" in line] == [done + 1]
  # The loss as the version that wrote the run computed it, with its optimizer state and data order.
  assert lines[0]["train/loss"] == pytest.approx(float(outputs(folder)["next_loss"]), rel=1e-4)
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == [str(done), str(done + 1)]
  saved = json.loads((workdir / "config.json").read_text())
  assert saved["format"] == config_lib.FORMAT
  assert saved["clip_jax_version"] == clip_jax.__version__


@EVERY
def test_a_saved_run_is_evaluated_as_it_was(folder, tmp_path):
  workdir, out = workdir_of(folder, tmp_path), tmp_path / "out.json"
  (tmp_path / "suite.py").write_text(
    "from pathlib import Path\nfrom clip_jax.config import from_json\n"
    f"def get_config():\n  return from_json(Path({str(workdir / 'config.json')!r}).read_text())"
    ".final_evaluators\n"
  )
  assert evaluate.main([f"--model={workdir}", f"--suite={tmp_path}/suite.py", f"--out={out}"]) == 0
  found = json.loads(out.read_text())["metrics"]
  last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
  expected = {
    k: v for k, v in last.items() if k.partition("/")[0] in config_of(workdir).final_evaluators
  }
  assert len(expected) > 5 and found.keys() >= expected.keys()
  for name, value in expected.items():
    # The model is nearly untrained, so rounding may swap two images of almost equal similarity.
    assert found[name] == pytest.approx(value, rel=0.01, abs=0.7), name


@EVERY
def test_a_saved_run_exports_to_every_format_that_it_was_exported_to(folder, tmp_path):
  workdir = workdir_of(folder, tmp_path)
  forms = {p.name for p in folder.iterdir()} & {"open_clip", "huggingface"} | {"stablehlo"}
  for form in forms:
    assert export.main([f"--model={workdir}", f"--format={form}", f"--out={tmp_path / form}"]) == 0
    check_export(tmp_path / form, folder)


@pytest.mark.parametrize("path", EXPORTS)
def test_an_exported_model_loads_with_the_same_embeddings(path):
  check_export(path, path.parent)


def check_export(path, folder):
  if path.name == "stablehlo":
    check_programs(path, folder)
    return
  embedder, prefix = clip_jax.load(path), ""
  if path.name == "big_vision.npz":  # Of another run, without its tokenizer and preprocessing.
    run, prefix = clip_jax.load(folder / "workdir"), "big_vision_"
    embedder.tokenize, embedder.preprocess = run.tokenize, run.preprocess
  check_embeddings(embedder, folder, prefix)


def check_programs(path, folder):
  embedder, expected = clip_jax.load(folder / "workdir"), outputs(folder)
  pixels = np.stack([embedder.preprocess(x) for x in expected["image"]])
  tokens = embedder.tokenize(expected["texts"].tolist())
  for name, x, z in (("image", pixels, "z_image"), ("text", tokens, "z_text")):
    program = jax_export.deserialize(bytearray((path / f"encode_{name}.stablehlo").read_bytes()))
    np.testing.assert_allclose(program.call(x), expected[z], atol=1e-5)


@EVERY
def test_a_saved_config_survives_being_saved_again(folder):
  config = config_of(folder / "workdir")
  assert from_json(to_saved(config)).to_dict() == config.to_dict()


def test_this_version_has_a_golden():
  assert clip_jax.__version__ in IDS, "run tests/golden/make_clip_jax.py"
  saved = json.loads((GOLDENS[IDS.index(clip_jax.__version__)] / "workdir/config.json").read_text())
  assert (saved["format"], saved["clip_jax_version"]) == (config_lib.FORMAT, clip_jax.__version__)


# Every function and class that a config could name before format 1, with its arguments.
BEFORE = json.loads((GOLDENS[IDS.index("format-0")] / "arguments.json").read_text())


def test_every_old_name_is_that_of_a_part():
  assert old_names.NAMES.keys() == BEFORE.keys()
  assert set(old_names.NAMES.values()) <= set(config_lib.all_parts())
  # So that one pass of `modernise` suffices, and no name of today is changed.
  assert not old_names.NAMES.keys() & set(old_names.NAMES.values())


@pytest.mark.parametrize("name", BEFORE)
def test_every_argument_of_an_old_call_exists_under_its_new_name(name):
  saved = {"fn": name, **dict.fromkeys(BEFORE[name])}
  part = from_json(json.dumps({"part": saved})).part
  assert part.fn == old_names.NAMES[name]
  fn = config_lib.function(part.fn)
  parameters = inspect.signature(fn.__init__ if inspect.isclass(fn) else fn).parameters
  assert len(part) == len(saved) and {*part} - {"fn"} <= parameters.keys()


@pytest.mark.parametrize("part", old_names.ARGUMENTS)
def test_a_renamed_argument_exists_and_its_old_name_is_free(part):
  assert config_lib.is_part(part)
  fn = config_lib.function(part)
  parameters = inspect.signature(fn.__init__ if inspect.isclass(fn) else fn).parameters
  renamed = old_names.ARGUMENTS[part]
  assert renamed and {*renamed.values()} <= parameters.keys()
  assert not renamed.keys() & parameters.keys()
  assert old_names.VALUES.get(part, {}).keys() <= renamed.keys()


def test_changed_values_are_converted():
  crop = {"fn": "clip_jax.data.crops:RandomResizedCrop", "size": 8}
  for squash, mode in ((True, "squash"), (False, "keep_aspect")):
    assert old_names.modernise([{"crop": {**crop, "squash": squash}}]) == [
      {"crop": {"fn": "clip_jax.data.RandomResizedCrop", "size": 8, "resize_mode": mode}}
    ]
  assert set(old_names.VALUES) <= set(old_names.ARGUMENTS)
