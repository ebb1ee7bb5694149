"""Unlimited synthetic scenes with captions that are true, or wrong at a known rate."""

import functools
from typing import Any

import numpy as np

from clip_jax.data.selection import record_number
from clip_jax.errors import UserError

COLOURS = {
    "red": (214, 39, 40), "orange": (255, 140, 20), "yellow": (245, 215, 40),
    "green": (44, 160, 44), "cyan": (60, 200, 215), "blue": (40, 80, 200),
    "purple": (140, 70, 190), "pink": (240, 130, 190), "brown": (130, 80, 45),
    "black": (25, 25, 25)}
# Inside the unit square, x to the right and y down: |x|, |y| <= 1.
SHAPES = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.3),
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.88,
    "diamond": lambda x, y: abs(x) + abs(y) <= 1,
    "triangle": lambda x, y: abs(x) <= (y + 1) / 2,
    "cross": lambda x, y: np.minimum(abs(x), abs(y)) <= 0.33,
    "bar": lambda x, y: abs(y) <= 0.36,
    "moon": lambda x, y: (x**2 + y**2 <= 1) & ((x - 0.5)**2 + y**2 >= 0.6)}
_SIZES = {"small": 0.55, "large": 0.95}  # Diameter, as a share of the cell that holds the object.
_CELLS = 3                               # Objects stand in different cells of a 3 x 3 grid.


class Shapes:
  """Source of random scenes such as "a small red circle left of a large blue square".

  A scene has one to `objects` objects, each a shape, a colour and a size, in different cells of a
  grid. The caption names all of them, and where the first one is as seen from the others.

  A record is {"image": uint8 [S, S, 3], "text": str, "label": int, the first object's place in
  `classes`, "swapped": whether the text is of another scene}, a function of (seed, index) alone.

  Attributes:
    classes: "red circle", "red ring", ..., by label.
  """

  classes = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

  def __init__(self, size: int, image_size: int = 64, noise: float = 0.0, seed: int = 0,
               objects: int = 3):
    """Draws nothing yet.

    Args:
      size: number of records.
      image_size: S, pixels a side.
      noise: share of the captions that belong to another scene. The images do not depend on it, and
        the wrong captions at a lower noise are among those at a higher one.
      seed: of the scenes; another seed gives other ones, for a test set.
      objects: most objects in a scene, 1 to 3.

    Raises:
      UserError: an argument out of its range.
    """
    if size < 1:
      raise UserError(f"size {size} is not a number of records, at least 1.")
    if image_size < 16:
      raise UserError(f"image_size {image_size} is too small to tell shapes apart; at least 16.")
    if not 0 <= noise <= 1:
      raise UserError(f"noise {noise} is not a share between 0 and 1.")
    if not 1 <= objects <= 3:
      raise UserError(f"objects {objects} is not 1, 2 or 3.")
    self.size, self.image_size, self.noise, self.seed = size, image_size, noise, seed
    self.objects = objects

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, self.size)
    rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, i]))
    scene = self._scene(rng)
    image = self._drawn(scene, rng)
    text = _caption(scene)
    swapped = rng.random() < self.noise
    while swapped and (other := _caption(self._scene(rng))) == text:
      pass
    return {"image": image, "text": other if swapped else text, "label": scene[0][0],
            "swapped": bool(swapped)}

  def _scene(self, rng):
    """One (label, size name, row, column, way to say a diagonal) per object."""
    count = 1 + int(rng.random() * self.objects)
    cells = rng.permutation(_CELLS**2)
    labels = rng.integers(len(self.classes), size=count)
    coins = rng.random((2, count))
    return [(int(label), "large" if large < 0.5 else "small", *divmod(int(cell), _CELLS), way < 0.5)
            for label, large, way, cell in zip(labels, *coins, cells)]

  def _drawn(self, scene, rng):
    """uint8 [S, S, 3]: the objects, softly edged, on a light background."""
    S = self.image_size
    image = np.empty((S, S, 3), np.uint8)
    image[:] = rng.integers(225, 256, size=3, dtype=np.uint8)
    places = rng.random((len(scene), 2))
    for (label, size, row, column, _), (down, right) in zip(scene, places):
      colour, cover = _stamp(label, int(S / _CELLS * _SIZES[size]))
      D = len(cover)
      room = S / _CELLS - D
      top, left = int(row * S / _CELLS + down * room), int(column * S / _CELLS + right * room)
      under = image[top:top + D, left:left + D]
      under[:] = colour + (under * cover >> 8)
    return image


def _caption(scene):
  """The words for a scene: all objects, and the first one's place as seen from each other one."""
  names = [f"a {size} {Shapes.classes[label]}" for label, size, *_ in scene]
  places = [_relation(scene[0], other) for other in scene[1:]]
  return " and ".join([names[0] + (f" {places[0]} {names[1]}" if places else "")]
                      + [f"{place} {name}" for place, name in zip(places[1:], names[2:])])


def _relation(one, other):
  """Where `one` is, seen from `other`; on a diagonal both ways of saying it are true."""
  down, right = one[2] - other[2], one[3] - other[3]
  if abs(right) > abs(down) or (abs(right) == abs(down) and one[4]):
    return "right of" if right > 0 else "left of"
  return "below" if down > 0 else "above"


@functools.cache
def _stamp(label, D):
  """An object of diameter D: its colour times its opacity, and the share left of what is under it.

  The shares are in 256ths, uint16: shifting integers is much faster than multiplying floats.
  """
  colour, shape = Shapes.classes[label].split()
  fine = (np.arange(8 * D) + 0.5) / (4 * D) - 1
  inside = SHAPES[shape](*np.meshgrid(fine, fine))                           # [8D, 8D]
  opacity = np.rint(256 * inside.reshape(D, 8, D, 8).mean((1, 3)))[..., None]
  painted = np.array(COLOURS[colour]) * opacity / 256                        # [D, D, 3]
  return np.rint(painted).astype(np.uint16), (256 - opacity).astype(np.uint16)
