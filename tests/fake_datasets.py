"""Tiny fakes of the data sets in the study's evaluations, written by TFDS itself.

Each image is a single colour that encodes its class, which `shown_number` decodes.
"""

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from clip_jax.data.decode import decode
from clip_jax.evaluators import classes

_ASSETS = Path(__file__).parent.parent / "clip_jax/data/assets/imagenet"
WNIDS = [
  row["wnid"]
  for row in csv.DictReader((_ASSETS / "classes.tsv").read_text().splitlines(), delimiter="\t")
]
FOLDERS = tuple(classes.published("objectnet"))
# (data set, label) -> class that the picture shows instead, which is not among the data set's 200.
HIDDEN = {}
for _name, _first in (("imagenet_a", 0), ("imagenet_r", -1)):
  _outside = [c for c in range(1000) if str(c) not in classes.published(_name)]
  for _k, _key in enumerate(list(classes.published(_name))[::5]):
    if _k % 2:
      HIDDEN[_name, int(_key)] = _outside[_k if _first == 0 else -1 - _k]
_STEP = 20  # Between values of a channel; JPEG compression changes one by less than half of this.


def jpeg(number, noise=0):
  """Returns a JPEG that encodes `number`, below 1,331; `noise` makes files of one number differ."""
  colour = [20 + _STEP * (number // 11**k % 11) for k in range(3)]
  out = io.BytesIO()
  Image.new("RGB", (8 + noise, 8), tuple(colour)).save(out, "JPEG", quality=95, subsampling=0)
  return out.getvalue()


def shown_number(encoded):
  """Decodes the number that a picture encodes."""
  colour = np.rint((decode(encoded).mean((0, 1)) - 20) / _STEP).astype(int)
  return int(colour @ [1, 11, 121])


def write_dataset(folder, name, features, splits, config=None):
  """Writes a data set with TFDS; `splits` are lists of records by split."""

  class FakeBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version="1.0.0")] if config else []
    code_path = None  # Skips TFDS's search for the builder's package, which fails under pytest.

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
      return {split: self._generate_examples(records) for split, records in splits.items()}

    def _generate_examples(self, records):
      for i, record in enumerate(records):
        yield i, {**record, "image": io.BytesIO(record["image"])}

  FakeBuilder.name = name
  FakeBuilder(
    data_dir=str(folder), file_format="array_record", **({"config": config} if config else {})
  ).download_and_prepare()


def objectnet_names():
  """Returns 313 class names: the 113 that are in ImageNet and 200 others."""
  return sorted([*FOLDERS, *(f"other_{k}" for k in range(200))], reverse=True)


def write_all(folder):
  """Writes all data sets of configs/evaluations/study.py, with the features that TFDS gives them.

  Pictures show their labeled class, except every second one of ImageNet-A and -R (`HIDDEN`), and
  every third one of V2, which shows the next class. Every second record of ReaL has another label
  before its own, and every tenth has no label.
  """
  image = tfds.features.Image(encoding_format="jpeg")
  text, label = tfds.features.Text(), tfds.features.ClassLabel(names=WNIDS)
  plain = {"image": image, "label": label, "file_name": text}
  record = lambda shown, true_class, **more: {
    "image": jpeg(shown, noise=true_class % 3),
    "label": true_class,
    "file_name": f"{true_class}.jpg",
    **more,
  }
  classes_used = range(0, 1000, 25)
  write_dataset(
    folder,
    "imagenet2012",
    plain,
    {
      "train": [record(c, c) for c in range(1000)],
      "validation": [record(c, c) for c in classes_used],
    },
  )
  write_dataset(
    folder,
    "imagenet_v2",
    plain,
    {"test": [record(c if k % 3 else c + 1, c) for k, c in enumerate(classes_used)]},
    config="matched-frequency",
  )
  for name in ("imagenet_a", "imagenet_r"):
    write_dataset(
      folder,
      name,
      plain,
      {
        "test": [
          record(HIDDEN.get((name, int(key)), int(key)), int(key))
          for key in list(classes.published(name))[::5]
        ]
      },
    )
  write_dataset(
    folder,
    "imagenet_sketch",
    {**plain, "image": tfds.features.Image()},
    {"test": [record(c, c) for c in classes_used]},
  )
  write_dataset(
    folder,
    "imagenet2012_real",
    {
      "image": image,
      "original_label": label,
      "real_label": tfds.features.Sequence(label),
      "file_name": text,
    },
    {
      "validation": [
        {
          "image": jpeg(c, noise=c % 3),
          "original_label": c,
          "file_name": f"{c}.jpg",
          "real_label": [] if k % 10 == 9 else [(c + 1) % 1000, c] if k % 2 else [c],
        }
        for k, c in enumerate(classes_used)
      ]
    },
  )
  names, rows = objectnet_names(), classes.in_imagenet("objectnet")
  objects = {"image": image, "label": tfds.features.ClassLabel(names=names)}
  write_dataset(
    folder,
    "objectnet",
    objects,
    {
      "test": [
        {"image": jpeg(int(rows[name][-1]) if name in rows else 5), "label": name}
        for name in names[1::6]
      ]
    },
  )
  write_dataset(
    folder,
    "coco_captions",
    {
      "image": image,
      "image/filename": text,
      "image/id": np.int64,
      "captions": tfds.features.Sequence({"id": np.int64, "text": text}),
    },
    {
      "test": [
        {
          "image": jpeg(c),
          "image/filename": f"{c}.jpg",
          "image/id": c,
          "captions": [{"id": k, "text": f"{c} {k}"} for k in range(5)],
        }
        for c in range(30)
      ]
    },
    config="2014",
  )
