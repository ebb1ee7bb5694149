"""The study's evaluation suite, on small fakes of its data sets, written by TFDS."""

from pathlib import Path
import runpy

import numpy as np
import pytest

from clip_jax.config import build, from_json, to_json
from clip_jax.evaluators import classes
from clip_jax.evaluators.results import Context, evaluate_all
import fake_datasets

SUITE = Path(__file__).parent.parent / "configs/evaluations/study.py"


class OracleEmbedder:
  """An embedder that scores the class an image shows with 1 and a differing label with 0.5."""

  def __init__(self):
    self.number = {}
    for row, (name,) in enumerate(classes.published("imagenet").values()):
      self.number.setdefault(name, row)
    rows = classes.in_imagenet("objectnet")
    for folder, (name,) in classes.published("objectnet").items():
      self.number.setdefault(name, int(rows[folder][-1]))
    self.hidden = {shown: own for (_, own), shown in fake_datasets.HIDDEN.items()}

  def encode_image(self, images):
    z = np.zeros((len(images), 1000), np.float32)
    for row, image in zip(z, images):
      shown = fake_datasets.shown_number(image)
      row[shown] = 1
      row[self.hidden.get(shown, shown)] += 0.5
    return z / np.linalg.norm(z, axis=1, keepdims=True)

  def encode_text(self, texts):
    return np.eye(1000, dtype=np.float32)[
      [int(text.split()[0]) if text[0].isdigit() else self.number[text] for text in texts]
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
  folder = tmp_path_factory.mktemp("study")
  fake_datasets.write_all(folder)
  suite = runpy.run_path(str(SUITE))["get_config"](str(folder))
  for call in suite.values():  # Replace settings that are slow or need more images.
    if "templates" in call:
      assert call.templates == "openai_80" and call.resize == "central_crop"
      call.templates, call.limit = "none", 10**6
  assert suite.few_shot.shots == (5, 10) and suite.few_shot.train.split == "train[:65000]"
  suite.few_shot.shots, suite.few_shot.train.split = (1,), "train"
  suite.probe.solver.update(epochs=2, batch_size=1000, rates=(0.1,))
  suite = from_json(to_json(suite))  # The suite survives a JSON round trip.
  context = Context(OracleEmbedder())
  return evaluate_all(
    {name: build(call) for name, call in suite.items()}, context
  ), context.embedder


def test_zero_shot_is_restricted_to_the_classes_of_each_set(results):
  made = {
    name: results[0][name].metrics
    for name in (
      "imagenet",
      "imagenet_v2",
      "imagenet_a",
      "imagenet_r",
      "imagenet_sketch",
      "imagenet_real",
      "objectnet",
    )
  }
  # Half of the images of -A and -R show a class outside their 200, so that they would be classified
  # wrongly among all 1,000 classes.
  assert {name: metrics["top1"] for name, metrics in made.items()} == pytest.approx(
    {
      "imagenet": 100,
      "imagenet_v2": 65,
      "imagenet_a": 100,
      "imagenet_r": 100,
      "imagenet_sketch": 100,
      "imagenet_real": 100,
      "objectnet": 100,
    }
  )
  assert {name: metrics["classes"] for name, metrics in made.items()} == {
    "imagenet": 1000,
    "imagenet_v2": 1000,
    "imagenet_a": 200,
    "imagenet_r": 200,
    "imagenet_sketch": 1000,
    "imagenet_real": 1000,
    "objectnet": 113,
  }
  assert made["objectnet"]["examples"] == sum(
    name in fake_datasets.FOLDERS for name in fake_datasets.objectnet_names()[1::6]
  )
  assert made["imagenet_real"]["examples"] == 36
  assert results[0]["imagenet_real"].detail["left_out"] == 4


def test_the_probe_is_trained_on_imagenet_and_tested_on_all_sets(results):
  metrics = results[0]["probe"].metrics
  assert metrics["train_examples"] == 1000 and metrics["top1"] == 100
  assert metrics["imagenet_v2/top1"] == pytest.approx(65)
  for name, count in (
    ("imagenet_a", 200),
    ("imagenet_r", 200),
    ("imagenet_sketch", 1000),
    ("imagenet_real", 1000),
    ("objectnet", 125),
  ):
    assert metrics[f"{name}/top1"] == 100 and metrics[f"{name}/classes"] == count
  assert results[0]["probe"].detail["fit"]["solver"] == "SGD"


def test_few_shot_accuracy_retrieval_and_robustness(results):
  found = {name: answer.metrics for name, answer in results[0].items()}
  assert found["few_shot"]["1_shot_top1"] == 100
  assert found["coco"]["image_to_text_r1"] == found["coco"]["text_to_image_r1"] == 100
  assert found["coco"]["examples"] == 30 and found["coco"]["captions"] == 150
  average = pytest.approx(100 - 35 / 6)
  assert found["robustness"]["average"] == found["probe_robustness"]["average"] == average


def test_every_image_is_embedded_once(results):
  asked = {
    name: answer.detail["asked"] for name, answer in results[0].items() if "asked" in answer.detail
  }
  # ReaL and Sketch have the same images as other sets, so they add none.
  assert results[1].embedded < 1000 + asked["imagenet"] + asked["imagenet_a"] + asked["imagenet_r"]
