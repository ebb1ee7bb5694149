"""Synthetic scenes with captions, in any number and with a known fraction of wrong captions."""

import functools
from typing import Annotated, Any

import numpy as np

from clip_jax.cli.values import Fraction, Range, Records, Seed, checked
from clip_jax.data.selection import record_number

COLOURS = {
  "red": (214, 39, 40),
  "orange": (255, 140, 20),
  "yellow": (245, 215, 40),
  "green": (44, 160, 44),
  "cyan": (60, 200, 215),
  "blue": (40, 80, 200),
  "purple": (140, 70, 190),
  "pink": (240, 130, 190),
  "brown": (130, 80, 45),
  "black": (25, 25, 25),
}
# Membership tests on the square |x|, |y| <= 1, with x to the right and y down.
SHAPES = {
  "circle": lambda x, y: x**2 + y**2 <= 1,
  "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.3),
  "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.88,
  "diamond": lambda x, y: abs(x) + abs(y) <= 1,
  "triangle": lambda x, y: abs(x) <= (y + 1) / 2,
  "cross": lambda x, y: np.minimum(abs(x), abs(y)) <= 0.33,
  "bar": lambda x, y: abs(y) <= 0.36,
  "moon": lambda x, y: (x**2 + y**2 <= 1) & ((x - 0.5) ** 2 + y**2 >= 0.6),
}
_SIZES = {"small": 0.55, "large": 0.95}  # Diameter, as a fraction of the grid cell.
_CELLS = 3  # Each object has its own cell of a 3 x 3 grid.


@checked
class Shapes:
  """Source of random scenes such as "a small red circle left of a large blue square".

  A scene has one to `objects` objects with a shape, a colour and a size, in different cells of a
  grid. The caption names all objects and the position of the first relative to each other one.

  A record is {"image": uint8 [S, S, 3], "text": str, "label": int, index of the first object in
  `classes`, "swapped": whether the text belongs to another scene}. It is a function of (seed,
  index) only.

  Attributes:
    classes: class names by label: "red circle", "red ring", ...
  """

  classes = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

  def __init__(
    self,
    size: Records,
    image_size: Annotated[int, Range(16, 2**14)] = 64,
    noise: Fraction = 0.0,
    seed: Seed = 0,
    objects: Annotated[int, Range(1, 3)] = 3,
  ):
    """Stores the settings; scenes are drawn when they are read.

    Args:
      size: number of records.
      image_size: S, width and height in pixels; at least 16, to tell shapes apart.
      noise: fraction of the captions that belong to another scene. The images do not depend on it,
        and a larger fraction includes the wrong captions of a smaller one.
      seed: seed of the scenes; use another seed for a test set.
      objects: maximum number of objects in a scene, 1 to 3.
    """
    self.size, self.image_size, self.noise, self.seed = size, image_size, noise, seed
    self.objects = objects

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, self.size)
    rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, i]))
    scene = self._scene(rng)
    image = self._render(scene, rng)
    text = _caption(scene)
    swapped = rng.random() < self.noise
    while swapped and (other := _caption(self._scene(rng))) == text:
      pass
    return {
      "image": image,
      "text": other if swapped else text,
      "label": scene[0][0],
      "swapped": bool(swapped),
    }

  def _scene(self, rng):
    """Draws (label, size name, row, column, how to name a diagonal) for each object."""
    count = 1 + int(rng.random() * self.objects)
    cells = rng.permutation(_CELLS**2)
    labels = rng.integers(len(self.classes), size=count)
    draws = rng.random((2, count))
    return [
      (int(label), "large" if large < 0.5 else "small", *divmod(int(cell), _CELLS), way < 0.5)
      for label, large, way, cell in zip(labels, *draws, cells)
    ]

  def _render(self, scene, rng):
    """Renders uint8 [S, S, 3]: antialiased objects on a light background."""
    S = self.image_size
    image = np.empty((S, S, 3), np.uint8)
    image[:] = rng.integers(225, 256, size=3, dtype=np.uint8)
    offsets = rng.random((len(scene), 2))
    for (label, size, row, column, _), (down, right) in zip(scene, offsets):
      colour, cover = _stamp(label, int(S / _CELLS * _SIZES[size]))
      D = len(cover)
      room = S / _CELLS - D
      top, left = int(row * S / _CELLS + down * room), int(column * S / _CELLS + right * room)
      under = image[top : top + D, left : left + D]
      under[:] = colour + (under * cover >> 8)
    return image


def _caption(scene):
  """Returns the caption: all objects, and where the first is relative to each other one."""
  names = [f"a {size} {Shapes.classes[label]}" for label, size, *_ in scene]
  relations = [_relation(scene[0], other) for other in scene[1:]]
  return " and ".join(
    [names[0] + (f" {relations[0]} {names[1]}" if relations else "")]
    + [f"{relation} {name}" for relation, name in zip(relations[1:], names[2:])]
  )


def _relation(one, other):
  """Returns where `one` is relative to `other`; on a diagonal, `one[4]` picks the axis."""
  down, right = one[2] - other[2], one[3] - other[3]
  if abs(right) > abs(down) or (abs(right) == abs(down) and one[4]):
    return "right of" if right > 0 else "left of"
  return "below" if down > 0 else "above"


@functools.cache
def _stamp(label, D):
  """Renders an object of diameter D for alpha compositing.

  Integers in 256ths are used because shifting them is much faster than multiplying floats.

  Returns:
    (colour times opacity, uint16 [D, D, 3]; 256 times (1 - opacity), uint16 [D, D, 1]).
  """
  colour, shape = Shapes.classes[label].split()
  fine = (np.arange(8 * D) + 0.5) / (4 * D) - 1
  inside = SHAPES[shape](*np.meshgrid(fine, fine))  # [8D, 8D]
  opacity = np.rint(256 * inside.reshape(D, 8, D, 8).mean((1, 3)))[..., None]
  painted = np.array(COLOURS[colour]) * opacity / 256  # [D, D, 3]
  return np.rint(painted).astype(np.uint16), (256 - opacity).astype(np.uint16)
