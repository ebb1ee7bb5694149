"""Tests of TFDS data sets written by TFDS: feature names, splits, no TensorFlow, errors."""

import contextlib
import io
from pathlib import Path
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from clip_jax.data import Subset
from clip_jax.data.sources.tfds import Tfds
from clip_jax.errors import UserError
from mutations import damaged_json

ROOT = Path(__file__).parents[3]
CAPTIONS = [f"a café with {i} chairs" for i in range(20)]


def jpeg(i):
  out = io.BytesIO()
  Image.new("RGB", (9, 8), (10 * i, 0, 0)).save(out, "JPEG")
  return out.getvalue()


def prepared(name, features, records, folder, file_format="array_record"):
  """Writes a TFDS data set: all records in "train", and the first two in "validation"."""

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # Otherwise TFDS looks for a package, which this test module lacks.

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
      return {
        "train": self._generate_examples(records),
        "validation": self._generate_examples(records[:2]),
      }

    def _generate_examples(self, given):
      for i, record in enumerate(given):
        yield (
          i,
          {
            key: io.BytesIO(value) if isinstance(value, bytes) else value
            for key, value in record.items()
          },
        )

  Builder.name = name
  Builder(data_dir=str(folder), file_format=file_format).download_and_prepare()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  image, text = tfds.features.Image(encoding_format="jpeg"), tfds.features.Text()
  prepared(
    "pairs",
    {"image": image, "caption": text, "url/of": text},
    [{"image": jpeg(i), "caption": c, "url/of": f"u{i}"} for i, c in enumerate(CAPTIONS)],
    folder,
  )
  prepared(
    "many_captions",
    {
      "image": image,
      "image/filename": text,
      "captions": tfds.features.Sequence({"id": np.int64, "text": text}),
      "regions": tfds.features.Dataset({"phrase": text}),
    },
    [
      {
        "image": jpeg(i),
        "image/filename": f"{i}.jpg",
        "captions": [{"id": k, "text": f"{i} {k}"} for k in range(3)],
        "regions": [{"phrase": "sky"}, {"phrase": f"tree {i}"}],
      }
      for i in range(4)
    ],
    folder,
  )
  prepared(
    "animals",
    {"image": image, "label": tfds.features.ClassLabel(names=["cat", "dog"])},
    [{"image": jpeg(i), "label": ("cat", "dog")[i % 2]} for i in range(6)],
    folder,
  )
  return str(folder)


def test_records_have_the_stored_bytes_and_the_text(folder):
  source = Tfds("pairs", data_dir=folder)
  assert len(source) == 20
  assert sorted((r["text"], r["image"]) for r in source) == sorted(
    (c, jpeg(i)) for i, c in enumerate(CAPTIONS)
  )
  assert set(source[0]) == {"image", "text"}


def test_a_slice_of_a_split_can_be_read(folder):
  whole = list(Tfds("pairs", data_dir=folder))
  assert list(Tfds("pairs", "train[:10%]", data_dir=folder)) == whole[:2]
  assert list(Tfds("pairs", "train[15:18]", data_dir=folder)) == whole[15:18]
  assert len(Tfds("pairs", "train[:50%]+validation", data_dir=folder)) == 12


def test_captions_in_a_sequence_become_a_list(folder):
  source = Tfds("many_captions", text="captions/text", data_dir=folder)
  assert sorted(r["text"] for r in source) == [[f"{i} {k}" for k in range(3)] for i in range(4)]
  source = Tfds("many_captions", text="regions/phrase", data_dir=folder)
  assert sorted(r["text"] for r in source) == [["sky", f"tree {i}"] for i in range(4)]


def test_several_text_features_become_one_list_and_names_may_have_slashes(folder):
  source = Tfds("many_captions", text=("image/filename", "captions/text"), data_dir=folder)
  assert ["2.jpg", "2 0", "2 1", "2 2"] in [r["text"] for r in source]
  assert Tfds("pairs", text="url/of", data_dir=folder)[0]["text"].startswith("u")


def test_a_classification_set_has_labels_and_class_names(folder):
  source = Tfds("animals", text=None, label="label", data_dir=folder)
  assert source.classes == ("cat", "dog")
  assert sorted((r["label"], r["image"]) for r in source) == sorted(
    (i % 2, jpeg(i)) for i in range(6)
  )
  assert set(source[0]) == {"image", "label"} and type(source[0]["label"]) is int
  assert not hasattr(Tfds("pairs", data_dir=folder), "classes")


def test_the_name_may_be_a_folder_or_include_a_version(folder):
  assert len(Tfds(f"{folder}/pairs/1.0.0")) == 20
  assert len(Tfds("pairs:1.0.0", data_dir=folder)) == 20


def test_the_source_and_its_subsets_are_picklable(folder):
  source = Tfds("pairs", data_dir=folder)
  source[0]
  assert list(pickle.loads(pickle.dumps(source))) == list(source)
  assert len(list(pickle.loads(pickle.dumps(Subset(source, "25%"))))) == 5


def test_records_are_read_without_tensorflow_and_tfds_is_imported_late(folder):
  code = f"""
import sys
from clip_jax.data.sources.tfds import Tfds
assert "tensorflow_datasets" not in sys.modules
print(Tfds("many_captions", text="captions/text", data_dir={folder!r})[1]["text"][2])
assert "tensorflow" not in sys.modules"""
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
  )
  assert re.fullmatch(r"\d 2\n", out.stdout)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (
      dict(text="text"),
      r"pairs has no feature 'text'. pairs has caption \(Text\), image "
      r"\(Image\), url/of \(Text\).",
    ),
    (dict(text="captoin"), "Did you mean 'caption'"),
    (dict(image="caption"), "'caption' of pairs has type Text; expected Image"),
    (dict(text="image"), "'image' of pairs has type Image; expected Text"),
    (dict(label="caption"), "has type Text; expected ClassLabel"),
    (dict(text="caption/more"), "pairs has no feature 'caption/more'"),
    (dict(split="test"), r"pairs has no split 'test' .* it has train of 20, validation of 2"),
    (dict(split="train[:x]"), r"no split 'train\[:x\]'"),
    (dict(split="train[30:]"), r"no split 'train\[30:\]' .*20"),
    (dict(split="train[:0]"), r"Split 'train\[:0\]' of pairs is empty"),
    (
      dict(name="pears"),
      "No prepared data set 'pears' in .*, which contains animals, many_captions, pairs. Did "
      "you mean 'pairs'.*tfds build pears --file_format=array_record",
    ),
    (dict(name="pairs:3.0.0"), "No prepared data set 'pairs:3.0.0'"),
  ],
)
def test_an_unknown_name_is_reported_with_the_known_ones(folder, arguments, message):
  with pytest.raises(UserError, match=message):
    Tfds(**{"name": "pairs", "data_dir": folder, **arguments})


def test_the_error_for_files_without_random_access_says_how_to_convert_them(tmp_path):
  prepared(
    "old",
    {"caption": tfds.features.Text(), "image": tfds.features.Image(encoding_format="jpeg")},
    [{"image": jpeg(0), "caption": "x"}],
    tmp_path,
  )
  info = tmp_path / "old/1.0.0/dataset_info.json"
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  with pytest.raises(UserError, match="contains tfrecord files.*tfds convert_format --dataset"):
    Tfds("old", data_dir=str(tmp_path))


def test_an_index_out_of_range_raises_index_error(folder):
  for i in (-1, 20):
    with pytest.raises(IndexError, match=f"record {i} of 20"):
      Tfds("pairs", data_dir=folder)[i]


@pytest.mark.parametrize("by", ["folder", "name"])
def test_a_description_imports_no_module(folder, tmp_path, monkeypatch, by):
  (tmp_path / "foreign_features.py").write_text("raise SystemExit('imported')")
  monkeypatch.syspath_prepend(tmp_path)
  shutil.copytree(folder, tmp_path / "sets")
  (path,) = (tmp_path / "sets").glob("pairs/*/features.json")
  text = path.read_text()
  assert "tensorflow_datasets.core.features.text_feature.Text" in text
  path.write_text(
    text.replace("tensorflow_datasets.core.features.text_feature.Text", "foreign_features.Text")
  )
  with pytest.raises(UserError, match="names 'foreign_features.Text', which is not one of the"):
    if by == "folder":
      Tfds(str(path.parent))
    else:
      Tfds("pairs", data_dir=tmp_path / "sets")
  assert "foreign_features" not in sys.modules


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_random_damage_to_the_description_gives_records_or_one_message(folder, tmp_path, name):
  where = tmp_path / "damaged"
  shutil.copytree(next(Path(folder).glob("pairs/*/dataset_info.json")).parent, where)
  good, refused = (where / name).read_bytes(), 0
  for damaged in damaged_json(good, 200):
    (where / name).write_bytes(damaged)
    try:
      source = Tfds(str(where), text=None)
      for i in range(min(len(source), 3)):
        with contextlib.suppress(Exception):  # A record that cannot be read is counted.
          source[i]
    except UserError as error:
      refused += 1
      assert len(str(error)) < 3000
  assert refused > 40
