"""Prompt templates and canonical form of class names for zero-shot classification."""

import csv
import functools
from pathlib import Path
import re
import string

from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError

_NONE = ("{}",)

# Forward selection on ImageNet. Source: OpenAI's CLIP, Prompt_Engineering_for_ImageNet.ipynb.
_OPENAI_7 = (
  "itap of a {}.",
  "a bad photo of the {}.",
  "a origami {}.",
  "a photo of the large {}.",
  "a {} in a video game.",
  "art of the {}.",
  "a photo of the small {}.",
)

# Source: the same notebook. "a origami", "a embroidered" and "itap" ("I took a picture") are as
# published.
_OPENAI_80 = (
  "a bad photo of a {}.",
  "a photo of many {}.",
  "a sculpture of a {}.",
  "a photo of the hard to see {}.",
  "a low resolution photo of the {}.",
  "a rendering of a {}.",
  "graffiti of a {}.",
  "a bad photo of the {}.",
  "a cropped photo of the {}.",
  "a tattoo of a {}.",
  "the embroidered {}.",
  "a photo of a hard to see {}.",
  "a bright photo of a {}.",
  "a photo of a clean {}.",
  "a photo of a dirty {}.",
  "a dark photo of the {}.",
  "a drawing of a {}.",
  "a photo of my {}.",
  "the plastic {}.",
  "a photo of the cool {}.",
  "a close-up photo of a {}.",
  "a black and white photo of the {}.",
  "a painting of the {}.",
  "a painting of a {}.",
  "a pixelated photo of the {}.",
  "a sculpture of the {}.",
  "a bright photo of the {}.",
  "a cropped photo of a {}.",
  "a plastic {}.",
  "a photo of the dirty {}.",
  "a jpeg corrupted photo of a {}.",
  "a blurry photo of the {}.",
  "a photo of the {}.",
  "a good photo of the {}.",
  "a rendering of the {}.",
  "a {} in a video game.",
  "a photo of one {}.",
  "a doodle of a {}.",
  "a close-up photo of the {}.",
  "a photo of a {}.",
  "the origami {}.",
  "the {} in a video game.",
  "a sketch of a {}.",
  "a doodle of the {}.",
  "a origami {}.",
  "a low resolution photo of a {}.",
  "the toy {}.",
  "a rendition of the {}.",
  "a photo of the clean {}.",
  "a photo of a large {}.",
  "a rendition of a {}.",
  "a photo of a nice {}.",
  "a photo of a weird {}.",
  "a blurry photo of a {}.",
  "a cartoon {}.",
  "art of a {}.",
  "a sketch of the {}.",
  "a embroidered {}.",
  "a pixelated photo of a {}.",
  "itap of the {}.",
  "a jpeg corrupted photo of the {}.",
  "a good photo of a {}.",
  "a plushie {}.",
  "a photo of the nice {}.",
  "a photo of the small {}.",
  "a photo of the weird {}.",
  "the cartoon {}.",
  "art of the {}.",
  "a drawing of the {}.",
  "a photo of the large {}.",
  "a black and white photo of a {}.",
  "the plushie {}.",
  "a dark photo of a {}.",
  "itap of a {}.",
  "graffiti of the {}.",
  "a toy {}.",
  "itap of my {}.",
  "a photo of a cool {}.",
  "a photo of a small {}.",
  "a tattoo of the {}.",
)

SETS = {"none": _NONE, "openai_7": _OPENAI_7, "openai_80": _OPENAI_80}


def templates(spec: str | tuple[str, ...]) -> tuple[str, ...]:
  """Returns prompt templates, each with "{}" where the class name goes.

  Args:
    spec: a name in `SETS`; or a data set that OpenAI published templates for, such as "food101"
      (see `per_dataset`); or one template; or several; or the path of a text file with one template
      per line, where empty lines and lines that start with # are skipped.

  Raises:
    UserError: an unknown name or unreadable file, no templates, or a template without "{}".
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
        f"Template {template!r} has no {{}} where the class name goes; expected, for example, "
        "'a photo of a {}.'."
      )
  if not found:
    raise UserError(
      f"There are no templates in {spec!r}. To use only the class name, set templates='none'."
    )
  return found


@functools.cache
def per_dataset() -> dict[str, tuple[str, ...]]:
  """Returns the templates that OpenAI evaluated CLIP with, by data set.

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
    near = did_you_mean(path, (*SETS, *per_dataset()))
    raise UserError(
      f"templates={path!r} is neither a set of templates ({', '.join((*SETS, *per_dataset()))}) "
      f"nor a readable text file ({error.strerror})."
      + (
        near
        or " Set it to one of these, to a file with one template per line, or to the templates."
      )
    ) from error
  return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def canonical(text: str) -> str:
  """Converts `text` to lower case, removes punctuation and normalises white space.

  Underscores count as white space, and "{}" is preserved. Models trained on text in this form, such
  as SigLIP, are less accurate on other text.

  Source: big_vision, evaluators/proj/image_text/prompt_engineering.py.
  """
  drop = str.maketrans("", "", string.punctuation)
  parts = text.replace("_", " ").split("{}")
  return re.sub(r"\s+", " ", "{}".join(part.translate(drop) for part in parts).lower()).strip()
