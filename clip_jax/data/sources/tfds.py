"""Reads data sets prepared by TensorFlow Datasets (TFDS), without TensorFlow."""

import contextlib
import os
from typing import Any

import numpy as np

from clip_jax.cli.optional import optional
from clip_jax.cli.suggest import did_you_mean
from clip_jax.cli.values import FilePath, checked
from clip_jax.data.selection import record_number
from clip_jax.errors import UserError

_FEATURES = "tensorflow_datasets.core.features."  # Where TFDS has its classes of features.


@checked
class Tfds:
  """Source of one split of a data set that TFDS has prepared as ArrayRecord files.

  Reads only the prepared files, so that neither TensorFlow nor the code of the data set is needed.
  A record is {"image": encoded bytes as stored by TFDS, "text": str or list of str, "label": int or
  list of int}, where "text" and "label" are present if requested.

  Attributes:
    classes: class names by label; only with a `label`.
  """

  def __init__(
    self,
    name: str,
    split: str = "train",
    image: str = "image",
    text: str | tuple[str, ...] | None = "caption",
    label: str | None = None,
    data_dir: FilePath | None = None,
  ):
    """Finds the data set and checks the feature names.

    Args:
      name: TFDS name, such as "coco_captions" or "name/config:1.0.0", or the folder that contains
        the dataset_info.json.
      split: TFDS split, such as "train", "train[:10%]" or "train[1000:2000]+validation".
      image: feature with the image. A slash separates nested names: "a/b" is feature b of a.
      text: feature with the text, for example "captions/text" for COCO, where it is a list. If a
        tuple of features, their texts are concatenated into one list. None for no text.
      label: ClassLabel feature with the class, if any; the label is a list if the feature is a
        sequence.
      data_dir: folder with the prepared data sets; local or gs://. Defaults to the environment
        variable TFDS_DATA_DIR or else ~/tensorflow_datasets.

    Raises:
      UserError: the data set is missing or not stored in ArrayRecord files, there is no such split
        or feature, or a feature has the wrong type.
    """
    # Imported here because it takes most of a second and only this source needs it.
    tfds = optional("tensorflow_datasets", "tfds")
    builder = _builder(name, data_dir)
    features = builder.info.features
    self.name, self.split = name, split
    self._image = _feature_path(features, image, name, tfds.features.Image)
    texts = (text,) if isinstance(text, str) else tuple(text or ())
    self._texts = [_feature_path(features, one, name, tfds.features.Text) for one in texts]
    self._several = not isinstance(text, str)
    self._label = label and _feature_path(features, label, name, tfds.features.ClassLabel)
    if label:
      self.classes = tuple(_feature(features, self._label).names)
    self._records = _records(builder, split, self._image)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, len(self))
    stored = self._records[i]
    record = {"image": _value(stored, self._image)}
    if self._texts:
      texts = [_text(_value(stored, path)) for path in self._texts]
      record["text"] = _flat(texts) if self._several else texts[0]
    if self._label:
      label = _value(stored, self._label)
      record["label"] = [int(one) for one in label] if np.ndim(label) else int(label)
    return record


def _builder(name, data_dir):
  """Returns a read-only builder for the prepared files."""
  tfds = optional("tensorflow_datasets", "tfds")
  from tensorflow_datasets.core import naming, read_only_builder

  if os.path.isfile(os.path.join(name, "dataset_info.json")):
    try:
      with _without_imports():
        return tfds.builder_from_directory(name)
    except UserError:
      raise
    except Exception as error:  # Several libraries read the files, and raise their own errors.
      raise UserError(
        f"{name} is not a prepared data set: its dataset_info.json, features.json or another file "
        f"cannot be read ({_first_line(error):.300}). Prepare it again."
      ) from error
  try:
    # tfds.builder would import the code of the data set, which may need TensorFlow.
    short, options = naming.parse_builder_name_kwargs(name, data_dir=data_dir)
    with _without_imports():
      return read_only_builder.builder_from_files(str(short), **options)
  except UserError:
    raise
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    folder = os.path.expanduser(
      data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )
    present = sorted({*os.listdir(folder)} - {"downloads"}) if os.path.isdir(folder) else []
    raise UserError(
      f"No prepared data set {name!r} in {folder}, which contains {_list(present)}."
      f"{did_you_mean(name, present)} Prepare it with: tfds build {name} "
      f"--file_format=array_record --data_dir={folder}. "
      "Or set data_dir to its parent folder, or set name to the folder of its dataset_info.json."
    ) from error


@contextlib.contextmanager
def _without_imports():
  """In this context, a features.json may only name classes of TFDS and those that are imported.

  TFDS would import any module that the file names, and the file may come from anybody.
  """
  from tensorflow_datasets.core.features.feature import FeatureConnector

  before = vars(FeatureConnector)["cls_from_name"]

  def known(cls, name):
    if name not in cls._registered_features and not str(name).startswith(_FEATURES):
      raise UserError(
        f"The features.json of the data set names {name!r:.200}, which is not one of "
        "the classes of TFDS. If you trust where it comes from, import its module before."
      )
    return before.__func__(cls, name)

  FeatureConnector.cls_from_name = classmethod(known)
  try:
    yield
  finally:
    FeatureConnector.cls_from_name = before


def _records(builder, split, image):
  """Opens the TFDS data source, with image decoding turned off."""
  tfds = optional("tensorflow_datasets", "tfds")

  decoders = tfds.decode.SkipDecoding()
  for part in reversed(image):
    decoders = {part: decoders}
  splits = builder.info.splits
  try:
    count = splits[split].num_examples
  except (KeyError, ValueError, AssertionError) as error:
    raise UserError(
      f"{builder.info.name} has no split {split!r} ({_first_line(error)}); it has "
      + ", ".join(f"{n} of {s.num_examples:,}" for n, s in sorted(splits.items()))
      + ', and slices of these, such as "train[:10%]".'
    ) from error
  if not count:
    raise UserError(f"Split {split!r} of {builder.info.name} is empty. Set a larger slice.")
  try:
    return builder.as_data_source(split=split, decoders=decoders)
  except NotImplementedError as error:
    raise UserError(
      f"{builder.data_dir} contains {builder.info.file_format.value} files, which do not support "
      "random access. Convert them with: tfds convert_format "
      f"--dataset_version_dir={builder.data_dir} --out_file_format=array_record --out_dir=DIR, "
      "and pass DIR as the name."
    ) from error
  except Exception as error:  # Several libraries read the files, and raise their own errors.
    raise UserError(
      f"{builder.data_dir} cannot be read ({_first_line(error):.300}). Prepare it again."
    ) from error


def _feature_path(features, written, dataset, kind):
  """Resolves a name such as "captions/text" to a tuple of feature names, outermost first.

  Raises:
    UserError: there is no such feature, or it has another type than `kind`.
  """
  path, rest, inside = [], written, features
  while rest:
    inside = _element_feature(inside)
    # Feature names may contain slashes, so prefer the longest match.
    fits = [key for key in _names(inside) if rest == key or rest.startswith(key + "/")]
    if not fits:
      raise UserError(_no_feature(features, written, dataset))
    path.append(max(fits, key=len))
    rest, inside = rest[len(path[-1]) + 1 :], inside[path[-1]]
  found = _element_feature(inside)
  if not isinstance(found, kind):
    raise UserError(
      f"Feature {written!r} of {dataset} has type {type(found).__name__}; expected "
      f"{kind.__name__}. {_features_of(features, dataset)}"
    )
  return tuple(path)


def _no_feature(features, written, dataset):
  near = did_you_mean(written, [name for name, _ in _leaves(features)])
  return f"{dataset} has no feature {written!r}. {_features_of(features, dataset)}{near}"


def _features_of(features, dataset):
  return (
    f"{dataset} has "
    + ", ".join(f"{name} ({type(feature).__name__})" for name, feature in _leaves(features))
    + "."
  )


def _leaves(features, before=""):
  """Yields (name as `_feature_path` reads it, feature) of each feature without nested features."""
  for name in sorted(_names(features)):
    inside = _element_feature(features[name])
    if _names(inside):
      yield from _leaves(inside, f"{before}{name}/")
    else:
      yield before + name, inside


def _element_feature(feature):
  """Returns the element feature of a (nested) sequence, and any other feature unchanged."""
  while hasattr(feature, "feature"):
    feature = feature.feature
  return feature


def _names(feature):
  return feature.keys() if hasattr(feature, "keys") else ()


def _feature(features, path):
  for name in path:
    features = _element_feature(features)[name]
  return _element_feature(features)


def _value(stored, path):
  """Returns the value at `path`, which is a list if the path passes through a sequence."""
  for k, name in enumerate(path):
    if not isinstance(stored, dict):
      return [_value(one, path[k:]) for one in stored]
    stored = stored[name]
  return stored


def _text(value):
  """Decodes bytes to str, and lists of them to a flat list of str."""
  if isinstance(value, bytes):
    return value.decode("utf-8")
  return value if isinstance(value, str) else _flat([_text(one) for one in value])


def _flat(values):
  """Flattens a list of str and lists of str into a list of str."""
  return [text for value in values for text in ([value] if isinstance(value, str) else value)]


def _list(names):
  return (", ".join(names[:10]) + (", ..." if len(names) > 10 else "")) or "nothing"


def _first_line(error):
  return str(error).strip("'\"").partition("\n")[0]
