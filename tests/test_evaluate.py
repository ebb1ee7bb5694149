"""The evaluate command: a model and a suite or the user's own files, a table and a JSON file."""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from clip_jax import evaluate
from clip_jax.config import build, from_json, to_json
from clip_jax.errors import UserError
from clip_jax.inference.loading import load
from clip_jax.inference.similarity import model_fingerprint
from clip_jax.training.checkpoint import Checkpoints
from clip_jax.training.setup import build_setup
from mutations import damaged_json
from run_config import get_config

ROOT = Path(__file__).parent.parent
SUITE = """
from ml_collections.config_dict import ConfigDict
from clip_jax.config import call
from clip_jax.data import Subset
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.robustness import Robustness
from clip_jax.evaluators.zero_shot import ZeroShot

def get_config(size="30"):
  source = call(Subset, source=call(OpenClipart, split="test"), size=int(size))
  return ConfigDict({"pairs": call(Retrieval, source=source),
          "subsets": call(ZeroShot, source=source, classes=OpenClipart.classes, limit=25),
          "summary": call(Robustness, standard="subsets/top1", variants={"top5": "subsets/top5"})})
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A workdir with an untrained model."""
  workdir = tmp_path_factory.mktemp("model")
  config = get_config()
  setup = build_setup(config)
  checkpoints = Checkpoints(workdir / "checkpoints")
  checkpoints.save(1, jax.jit(setup.init_state)(0), config)
  checkpoints.close()
  (workdir / "config.json").write_text(to_json(config))
  return workdir


@pytest.fixture
def suite(tmp_path):
  (tmp_path / "suite.py").write_text(SUITE)
  return tmp_path / "suite.py"


def write_image(path, shade=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((9, 12, 3), shade, np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
  for k, name in enumerate(("big_cat", "dog", "owl")):
    for i in range(3):
      write_image(tmp_path / "classes" / name / f"{i}.png", 80 * k + i)
  return tmp_path / "classes"


def test_a_suite_prints_a_table_and_writes_a_file(model, suite, tmp_path, capsys):
  out = tmp_path / "out.json"
  assert evaluate.main([f"--model={model}", f"--suite={suite}", f"--out={out}"]) == 0
  printed = capsys.readouterr().out
  for words in (
    "pairs",
    "image_to_text_r10",
    "mean_per_class",
    "±",
    "examples",
    "summary",
    "images/s",
    str(out),
  ):
    assert words in printed
  report = json.loads(out.read_text())
  assert report["metrics"]["pairs/examples"] == 30 and report["metrics"]["subsets/examples"] == 25
  fingerprint = model_fingerprint(load(model).model)
  assert report["model"] == {"from": str(model), "fingerprint": fingerprint}
  for name in ("pairs", "subsets"):
    result = report["results"][name]
    assert result["model_fingerprint"] == fingerprint and result["resize"] == "squash to 32 x 32"
    assert result["standard_error"] and result["unreadable"] == 0
    for metric, value in result["metrics"].items():
      assert report["metrics"][f"{name}/{metric}"] == value
  assert report["results"]["subsets"]["sentences"] == ["{}"]
  assert report["metrics"]["summary/average"] == report["metrics"]["subsets/top5"]
  # The images of the smaller set are among those of the larger one, which are embedded once.
  assert report["images_embedded"] == 30 and report["images_per_second"] > 0
  assert report["devices"] and report["jax"] and report["clip_jax"]


def test_a_part_of_a_suite_with_overridden_values(model, suite, tmp_path):
  out = tmp_path / "out.json"
  evaluate.main(
    [
      f"--model={model}",
      f"--suite={suite}:20",
      "--only=pairs",
      f"--out={out}",
      "--suite.pairs.resize=crop",
    ]
  )
  report = json.loads(out.read_text())
  assert list(report["results"]) == ["pairs"] and report["metrics"]["pairs/examples"] == 20
  assert report["results"]["pairs"]["resize"] == "crop to 32 x 32"


def test_own_folders_of_classes(model, folders, tmp_path):
  out = tmp_path / "out.json"
  run = lambda *more: (
    evaluate.main([f"--model={model}", f"--classification={folders}", f"--out={out}", *more]),
    json.loads(out.read_text())["results"]["classification"],
  )[1]
  plain = run()
  assert plain["metrics"]["examples"] == 9 and plain["metrics"]["classes"] == 3
  assert plain["sentences"] == ["{}"] and str(folders) in plain["source"]
  (folders / "classnames.json").write_text(
    json.dumps({"big_cat": ["lion", "tiger"], "dog": "dog", "owl": "owl"})
  )
  named = run("--templates=openai_7", "--resize=central_crop")
  assert len(named["sentences"]) == 7 and named["resize"] == "crop to 32 x 32, central 0.875"
  embedder = load(model)
  from clip_jax.data.crops import Resize
  from clip_jax.inference.templates import SETS

  names = (("lion", "tiger"), ("dog",), ("owl",))
  z_class = np.stack(
    [
      np.mean(
        embedder.encode_text(
          [form.replace("{}", name) for name in own for form in SETS["openai_7"]]
        ),
        0,
      )
      for own in names
    ]
  )
  z_class /= np.linalg.norm(z_class, axis=1, keepdims=True)
  prepare = Resize(32, resize_mode="crop", center_crop=0.875)
  images = np.stack(
    [
      prepare((folders / name / f"{i}.png").read_bytes())
      for name in ("big_cat", "dog", "owl")
      for i in range(3)
    ]
  )
  right = (embedder.encode_image(images) @ z_class.T).argmax(1) == np.repeat(range(3), 3)
  assert named["metrics"]["top1"] == pytest.approx(100 * right.mean())


def test_own_captions(model, tmp_path):
  rows = [
    {"image": f"in/{k}.png", "caption": ["a", f"b {k}"] if k % 2 else f"c {k}"} for k in range(5)
  ]
  for k in range(5):
    write_image(tmp_path / f"in/{k}.png", 50 * k)
  table = tmp_path / "pairs.jsonl"
  table.write_text("".join(json.dumps(row) + "\n" for row in rows))
  evaluate.main([f"--model={model}", f"--retrieval={table}", f"--out={tmp_path / 'o.json'}"])
  metrics = json.loads((tmp_path / "o.json").read_text())["results"]["retrieval"]["metrics"]
  assert metrics["examples"] == 5 and metrics["captions"] == 7
  assert metrics["text_to_image_r5"] == 100  # There are only five images, all different.


def test_the_error_for_missing_images_counts_and_names_them(model, tmp_path):
  table = tmp_path / "pairs.jsonl"
  table.write_text(
    "".join(json.dumps({"image": f"{k}.png", "caption": "x"}) + "\n" for k in range(7))
  )
  with pytest.raises(
    UserError, match="7 of the 7 images .*pairs.jsonl.*: 0.png, 1.png, 2.png, 3.png, 4.png, ..."
  ):
    evaluate.main(["--model=nowhere", f"--retrieval={table}"])


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((), "Set --model=MODEL"),
    (("--model=m",), "Nothing to evaluate. Set --suite=FILE"),
    (
      ("--model=m", "--suite=configs/evaluations/openclipert.py"),
      "no suite file configs/evaluations/openclipert.py. Did you mean configs/evaluations/openc",
    ),
    (("--model=m", "--suite.a.b=3"), "Set --suite=NAME or FILE.py, as in --suite=evaluations/"),
    (
      ("--model=m", "--suite=SUITE", "--only=pears"),
      "--only=pears: the suite has no 'pears'; choose from pairs, subsets, summary",
    ),
    (("--model=m", "--only=pairs"), "no 'pairs'; set --suite=FILE"),
    (
      ("--model=m", "--suite=SUITE", "--templates=none"),
      "--templates applies only to --classification; for a ",
    ),
    (
      ("--model=m", "--suite=SUITE", "--resize=crop"),
      "--resize applies only to --classification and --retrieval; ",
    ),
    (
      ("--model=m", "--classification=FOLDERS", "--resize=crap"),
      "resize is 'crap'; .* 'squash'",
    ),
    (
      ("--model=m", "--classification=FOLDERS", "--out=/nowhere/x.json"),
      "--out=/nowhere/x.json cannot ",
    ),
    (("--model=m", "--classification=FOLDERS"), "No model found in m"),
  ],
)
def test_mistakes_are_reported_before_anything_expensive(suite, folders, arguments, message):
  with pytest.raises(UserError, match=message):
    evaluate.main(
      [a.replace("SUITE", str(suite)).replace("FOLDERS", str(folders)) for a in arguments]
    )


def test_a_suite_entry_that_is_not_a_call_is_an_error(tmp_path):
  (tmp_path / "suite.py").write_text(
    "from ml_collections.config_dict import ConfigDict\n"
    "def get_config():\n  return ConfigDict({'a': {'b': 3}})\n"
  )
  with pytest.raises(UserError, match="The suite's a is not a call"):
    evaluate.main(["--model=m", f"--suite={tmp_path / 'suite.py'}"])


@pytest.mark.parametrize(
  "names, message",
  [
    ("[", "classnames.json is not JSON: Expecting value.*Expected"),
    ('["cat"]', "classnames.json holds a list, not a dict. Expected"),
    ('{"big_cat": 7, "dog": "b", "owl": "c"}', "big_cat is 7; expected a string"),
    ('{"big_cat": [], "dog": "b", "owl": "c"}', "big_cat is .*Expected"),
    (
      '{"big_cat": "a", "dog": "b", "owl": "c", "elk": "d"}',
      "does not match the folders .* 1 names without a folder: elk",
    ),
    ('{"big_cat": "a"}', "2 folders without a name: dog, owl"),
  ],
)
def test_class_names_that_do_not_match_the_folders_are_an_error(folders, names, message):
  (folders / "classnames.json").write_text(names)
  with pytest.raises(UserError, match=message):
    evaluate.main(["--model=m", f"--classification={folders}"])


def test_random_damage_to_class_names_gives_names_or_one_message(folders):
  file = folders / "classnames.json"
  good = json.dumps({"big_cat": ["lion", "tiger"], "dog": "dog", "owl": "owl"}).encode()
  file.write_bytes(good)
  assert evaluate.classification(str(folders))[1]["big_cat"] == ["lion", "tiger"]
  refused = 0
  for damaged in damaged_json(good, 200):
    file.write_bytes(damaged)
    try:
      evaluate.classification(str(folders))
    except UserError as error:
      refused += 1
      assert len(str(error)) < 3000
  assert 100 < refused < 200


def test_a_class_of_links_out_of_the_folder_has_no_images(folders, tmp_path):
  (folders / "elk").mkdir()
  (tmp_path / "private.png").touch()
  (folders / "elk" / "1.png").symlink_to(tmp_path / "private.png")
  with pytest.raises(UserError, match="have no images: elk"):
    evaluate.classification(str(folders))


def test_a_class_without_images_is_an_error(folders):
  (folders / "elk").mkdir()
  with pytest.raises(UserError, match="1 of the 4 classes in .* have no images: elk"):
    evaluate.main(["--model=m", f"--classification={folders}"])


@pytest.mark.parametrize(
  "path", sorted((ROOT / "configs/evaluations").glob("[!_]*.py")), ids=lambda path: path.stem
)
def test_a_suite_has_its_command_in_the_header_and_survives_a_json_round_trip(path):
  import runpy

  made = runpy.run_path(str(path))
  assert (
    f"python -m clip_jax.evaluate --model=DIR --suite=configs/evaluations/{path.name}"
    in (made["__doc__"])
  )
  suite = made["get_config"]()
  assert to_json(from_json(to_json(suite))) == to_json(suite)


def test_the_openclipart_suite_can_be_built():
  import runpy

  suite = runpy.run_path(str(ROOT / "configs/evaluations/openclipart.py"))["get_config"]()
  assert {type(build(call)).__name__ for call in suite.values()} == {
    "Retrieval",
    "ZeroShot",
    "FewShot",
    "LinearProbe",
  }


POD = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8 // int(sys.argv[1]))
if int(sys.argv[1]) > 1:
  jax.distributed.initialize("127.0.0.1:{port}", int(sys.argv[1]), int(sys.argv[2]))
from clip_jax import evaluate
sys.exit(evaluate.main(sys.argv[3:]))
"""
POD_SUITE = """
from ml_collections.config_dict import ConfigDict
from clip_jax.config import call
from clip_jax.data import Subset
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.evaluators.few_shot import FewShot
from clip_jax.evaluators.labeled_sets import LabeledSet
from clip_jax.evaluators.linear_probe import LinearProbe
from clip_jax.evaluators.linear_classifier import Lbfgs, Sgd
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.zero_shot import ZeroShot

def get_config():
  test = call(Subset, source=call(OpenClipart, split="test"), size=97)
  train = call(Subset, source=call(OpenClipart, split="train"), size=151)
  known = call(Labelled, source=train, classes=OpenClipart.classes)
  probe = lambda solver: call(LinearProbe, train=known, test=call(Labelled, source=test),
                              solver=solver)
  return ConfigDict({"pairs": call(Retrieval, source=test),
          "subsets": call(ZeroShot, source=test, classes=OpenClipart.classes, limit=71),
          "few": call(FewShot, train=train, test=test, classes=OpenClipart.classes, shots=(1,)),
          "lbfgs": probe(call(Lbfgs, penalties=(1e-2,))),
          "sgd": probe(call(Sgd, rates=(0.1,), epochs=1))})
"""


@pytest.mark.slow
def test_two_processes_give_the_same_results_as_one(model, tmp_path):
  import socket

  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  (tmp_path / "pod.py").write_text(POD.replace("{port}", str(port)))
  (tmp_path / "suite.py").write_text(POD_SUITE)
  reports = {}
  for hosts in (1, 2):
    out = tmp_path / f"{hosts}.json"
    processes = [
      subprocess.Popen(
        [
          sys.executable,
          str(tmp_path / "pod.py"),
          str(hosts),
          str(k),
          f"--model={model}",
          f"--suite={tmp_path / 'suite.py'}",
          f"--out={out}",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for k in range(hosts)
    ]
    printed = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * hosts, printed
    reports[hosts] = json.loads(out.read_text())
    assert ["images/s" in text for text in printed] == [True, False][:hosts]  # Only process 0.
  assert reports[2]["images_embedded"] == reports[1]["images_embedded"] == 97 + 151
  # Rounding may change the rank of one example.
  assert reports[2]["metrics"] == pytest.approx(reports[1]["metrics"], abs=100 / 71 + 0.01)
  assert reports[2]["model"] == reports[1]["model"]
