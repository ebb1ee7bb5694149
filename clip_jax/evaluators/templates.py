"""Prompt templates, and the canonical form of class names, for zero-shot classification."""

import csv
import difflib
import functools
from pathlib import Path
import re
import string

from clip_jax.errors import UserError

_NONE = ("{}",)

# Forward selection on ImageNet. Source: OpenAI's CLIP, Prompt_Engineering_for_ImageNet.ipynb.
_OPENAI_7 = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.")

# Source: the same notebook. "a origami", "a embroidered" and "itap" ("I took a picture") are meant.
_OPENAI_80 = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.",
    "a photo of the hard to see {}.", "a low resolution photo of the {}.", "a rendering of a {}.",
    "graffiti of a {}.", "a bad photo of the {}.", "a cropped photo of the {}.",
    "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.",
    "a dark photo of the {}.", "a drawing of a {}.", "a photo of my {}.", "the plastic {}.",
    "a photo of the cool {}.", "a close-up photo of a {}.", "a black and white photo of the {}.",
    "a painting of the {}.", "a painting of a {}.", "a pixelated photo of the {}.",
    "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.", "a photo of the {}.", "a good photo of the {}.",
    "a rendering of the {}.", "a {} in a video game.", "a photo of one {}.", "a doodle of a {}.",
    "a close-up photo of the {}.", "a photo of a {}.", "the origami {}.", "the {} in a video game.",
    "a sketch of a {}.", "a doodle of the {}.", "a origami {}.", "a low resolution photo of a {}.",
    "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.", "a photo of a large {}.",
    "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.",
    "a embroidered {}.", "a pixelated photo of a {}.", "itap of the {}.",
    "a jpeg corrupted photo of the {}.", "a good photo of a {}.", "a plushie {}.",
    "a photo of the nice {}.", "a photo of the small {}.", "a photo of the weird {}.",
    "the cartoon {}.", "art of the {}.", "a drawing of the {}.", "a photo of the large {}.",
    "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.", "itap of a {}.",
    "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.",
    "a photo of a small {}.", "a tattoo of the {}.")

SETS = {"none": _NONE, "openai_7": _OPENAI_7, "openai_80": _OPENAI_80}


def templates(spec: str | tuple[str, ...]) -> tuple[str, ...]:
  """Prompt templates, each with "{}" where the class name goes.

  Args:
    spec: the name of one of `SETS`, or of a data set that OpenAI published templates for, such as
      "food101" (`per_dataset`); or one template; or several; or a text file of them, one a line,
      where empty lines and lines that start with # are skipped.

  Raises:
    UserError: neither a set nor a file, no templates, or a template without "{}".
  """
  if not isinstance(spec, str):
    found = tuple(spec)
  elif spec in SETS:
    found = SETS[spec]
  elif spec in per_dataset():
    found = per_dataset()[spec]
  elif "{}" in spec:
    found = (spec,)
  else:
    found = _from_file(spec)
  for template in found:
    if "{}" not in template:
      raise UserError(
          f"The template {template!r} has no {{}} where the class name goes; expected something "
          "like 'a photo of a {}.'.")
  if not found:
    raise UserError(
        f"There are no templates in {spec!r}. For the class name alone say templates='none'.")
  return found


@functools.cache
def per_dataset() -> dict[str, tuple[str, ...]]:
  """The templates that OpenAI's CLIP was evaluated with, by data set.

  Source: `data/assets/templates/README.md`.
  """
  file = Path(__file__).parent.parent / "data/assets/templates/openai.tsv"
  made = {}
  with open(file, encoding="utf-8", newline="") as f:
    for row in csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE):
      made[row["dataset"]] = (*made.get(row["dataset"], ()), row["template"])
  return made


def _from_file(path):
  try:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
  except OSError as error:
    close = difflib.get_close_matches(path, (*SETS, *per_dataset()), 1)
    raise UserError(
        f"templates={path!r} is neither a set of templates ({', '.join((*SETS, *per_dataset()))}) "
        f"nor a text file that can be read ({error.strerror})."
        + (f" Did you mean {close[0]!r}?" if close else
           " Name a set, a file with one template a line, or give the templates themselves.")
    ) from error
  return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def canonical(text: str) -> str:
  """`text` in lower case, no punctuation, "_" and runs of white space as one space; "{}" stays.

  Models that were trained on text in this form (SigLIP) lose points on text that is not.

  Source: big_vision, evaluators/proj/image_text/prompt_engineering.py.
  """
  drop = str.maketrans("", "", string.punctuation)
  parts = text.replace("_", " ").split("{}")
  return re.sub(r"\s+", " ", "{}".join(part.translate(drop) for part in parts).lower()).strip()
