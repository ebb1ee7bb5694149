"""Sizes of image and text towers by the names that papers use, or from totals."""

import csv
import dataclasses
import functools
import math
import re

import numpy as np

from clip_jax.errors import UserError
from clip_jax.study.tables import REFERENCE


@dataclasses.dataclass(frozen=True)
class ModelShape:
  """Size of a two-tower model, as far as the pooled law depends on it.

  Attributes:
    name: name as in the tables, such as "B-32" or "ResNet-50".
    image_parameters: parameters of the image tower, in millions.
    text_parameters: parameters of the text tower with its embeddings, in millions.
    tokens: image patches; for other towers 1e6 multiply-adds per 1e6 parameters, which is the same
      for a ViT without its attention.
    forward_gflops: 1e9 forward FLOPs per example, two for each multiply-add.
  """

  name: str
  image_parameters: float
  text_parameters: float
  tokens: float
  forward_gflops: float

  @property
  def parameters(self) -> float:
    """Parameters of both towers, in millions."""
    return self.image_parameters + self.text_parameters


# The paper's text tower: 12 layers of width 768 on 16 tokens of a vocabulary of 32,000.
_PAPER_TEXT, _PAPER_TEXT_GFLOPS = 110.0, 2.73
# name -> (parameters in millions, tokens, 1e9 multiply-adds) of the image tower.
_PAPER_IMAGE = {
  "Ti-16": (5.5, 196, 1.25),
  "S-16": (21.8, 196, 4.57),
  "B-32": (87.85, 49, 4.32),
  "B-16": (86.2, 196, 17.47),
  "L-16": (304.1, 196, 61.23),
  "ResNet-50": (25.5, 160, 4.09),
  "ConvNeXt-T": (28.6, 156, 4.46),
  "Swin-T": (28.3, 159, 4.49),
  "Mixer-B-32": (59.0, 55, 3.24),
}
# Models of other papers that tuned_models.csv lacks: image, text parameters, tokens, GFLOPs.
_OTHER = {
  "Ti-16": (5.5, 40.44, 196, 8.4),
  "ResNet-50": (25.5, 63.43, 160, 14.1),
  "ConvNeXt-T": (28.6, 63.43, 156, 14.8),
  "Swin-T": (28.3, 63.43, 159, 14.9),
  "Mixer-B-32": (59.0, 63.43, 55, 12.4),
  "g-14": (1012.0, 354.0, 256, 581.0),
  "G-14": (1845.0, 694.0, 256, 1080.0),
}
_ALIASES = {"RN50": "ResNet-50", "ConvNeXt-Tiny": "ConvNeXt-T", "Swin-Tiny": "Swin-T"}


@functools.cache
def known_shapes() -> dict[str, ModelShape]:
  """Shapes by name, of CLIP's models in `tuned_models.csv` and some of other papers."""
  found = {}
  with (REFERENCE / "tuned_models.csv").open(newline="", encoding="utf-8") as file:
    for row in csv.DictReader(file):
      if row["objective"] == "clip":
        patch = int(re.search(r"-(\d+)", row["model"])[1])
        found[row["model"]] = ModelShape(
          row["model"],
          float(row["image_parameters_m"]),
          float(row["text_parameters_m"]),
          (int(row["image_size"]) // patch) ** 2,
          float(row["forward_gflops"]),
        )
  for name, (image, text, tokens, gflops) in _OTHER.items():
    found[name] = ModelShape(name, image, text, tokens, gflops)
  return found


def paper_shape(arch: str) -> ModelShape:
  """Shape of a model of the paper, which has the same text tower in all of them."""
  name = short_name(arch)
  image, tokens, gmacs = _PAPER_IMAGE[name]
  return ModelShape(name, image, _PAPER_TEXT, tokens, 2 * gmacs + _PAPER_TEXT_GFLOPS)


def short_name(arch: str) -> str:
  """Name as in the tables: "ViT-B/32", "vit_b_32" and "B/32" are "B-32"."""
  name = arch.strip().replace("/", "-").replace("_", "-")
  name = re.sub(r"^vit-?", "", name, flags=re.IGNORECASE)
  for known in (*known_shapes(), *_ALIASES):
    # g-14 and G-14 are different models.
    if name == known or (name.lower() == known.lower() and known not in ("g-14", "G-14")):
      return _ALIASES.get(known, known)
  return name


def model_shape(arch: str) -> ModelShape:
  """Shape of a model by its name, such as ViT-B/32.

  Raises:
    UserError: the name is unknown.
  """
  name = short_name(arch)
  if name not in known_shapes():
    raise UserError(
      f"There is no model {arch!r} in the tables; known are {', '.join(known_shapes())}. For "
      "another model give --parameters=150M and --forward_gflops=15 instead of --arch."
    )
  return known_shapes()[name]


def shape_from_totals(parameters: float, forward_gflops: float) -> ModelShape:
  """Shape of a model of which only totals are known; the text tower is that of models of its size.

  Args:
    parameters: number of parameters of both towers.
    forward_gflops: 1e9 forward FLOPs per example, two for each multiply-add.

  Raises:
    UserError: the totals are outside the range of the evidence by more than a factor of 4, or the
      text tower of a model of this size alone would need more FLOPs.
  """
  named = sorted(
    (s for s in known_shapes().values() if "-alt" not in s.name and "+" not in s.name),
    key=lambda s: s.parameters,
  )
  total, least, most = parameters / 1e6, named[0].parameters / 4, named[-1].parameters * 4
  if not least <= total <= most:
    raise UserError(
      f"A model of {parameters:.4g} parameters is outside the range of the evidence; give "
      f"--parameters between {least:.0f}M and {most:.0f}M."
    )
  at = lambda values: float(
    np.exp(np.interp(math.log(total), np.log([s.parameters for s in named]), np.log(values)))
  )
  text = min(at([s.text_parameters for s in named]), 0.9 * total)
  text_gflops = at([max(s.forward_gflops - _image_gflops(s), 0.5) for s in named])
  image_gflops = forward_gflops - text_gflops
  tokens = image_gflops / 2 * 1e3 / (total - text)
  if not 10 <= tokens <= 3000:
    raise UserError(
      f"forward_gflops={forward_gflops:g} does not fit {parameters:.4g} parameters: the text "
      f"tower of such a model needs about {text_gflops:.3g}, and the image tower 0.02 to 6 for "
      "each million parameters. Give the FLOPs of one example, forward, two per multiply-add."
    )
  return ModelShape("unnamed", total - text, text, tokens, forward_gflops)


def _image_gflops(shape):
  return 2 * shape.image_parameters * shape.tokens / 1e3
