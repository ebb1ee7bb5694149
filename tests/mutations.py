"""Random damage to bytes and to JSON values, for tests of readers."""

from collections.abc import Iterator
import copy
import json
import random
from typing import Any

ODD = (
  None, True, False, 0, -1, 1, 10**400, 2**63, 0.5, -0.0, float("nan"), float("inf"), "", "x", "\0",
  "\ud800", "../..", [], [[]], {}, {"x": 1}, ["a"] * 3, "9" * 5000,
)  # fmt: skip


def damaged_bytes(content: bytes, rounds: int, seed: int = 0) -> Iterator[bytes]:
  """Yields copies with flipped, removed, inserted or repeated bytes, or cut off."""
  rng = random.Random(seed)
  for _ in range(rounds):
    made = bytearray(content)
    for _ in range(rng.randint(1, 4)):
      at, size = rng.randrange(len(made) + 1), rng.choice((1, 1, 2, 8, 100))
      kind = rng.randrange(5)
      if kind == 0 and at < len(made):
        made[at] ^= 1 << rng.randrange(8)
      elif kind == 1:
        made[at : at + size] = rng.randbytes(size)
      elif kind == 2:
        del made[at : at + size]
      elif kind == 3:
        made[at:at] = made[max(0, at - size) : at]
      else:
        del made[at:]
    yield bytes(made)


def damaged_values(value: Any, rounds: int, seed: int = 0) -> Iterator[Any]:
  """Yields copies of a JSON value in which one to three inner values are odd, missing or moved."""
  rng = random.Random(seed)
  for _ in range(rounds):
    made = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
      places = list(_places(made))
      if not places:
        continue
      inside, key = rng.choice(places)
      kind = rng.randrange(8)
      if kind == 0:
        del inside[key]
      elif kind == 1:
        other, name = rng.choice(places)
        inside[key] = copy.deepcopy(other[name])
      elif kind == 2 and isinstance(inside[key], (int, float)) and inside[key] == inside[key]:
        inside[key] = rng.choice(
          (-inside[key], inside[key] * 1000, inside[key] + 1, str(inside[key]))
        )
      else:
        inside[key] = copy.deepcopy(rng.choice(ODD))
    yield made if rng.random() > 0.02 else rng.choice(ODD)


def damaged_json(content: bytes, rounds: int, seed: int = 0) -> Iterator[bytes]:
  """Yields damaged copies of a JSON file: half as bytes, half as values."""
  yield from damaged_bytes(content, rounds // 2, seed)
  for value in damaged_values(json.loads(content), rounds - rounds // 2, seed):
    yield json.dumps(value).encode()


def _places(value):
  if isinstance(value, (dict, list)):
    for key in list(value) if isinstance(value, dict) else range(len(value)):
      yield value, key
      yield from _places(value[key])
