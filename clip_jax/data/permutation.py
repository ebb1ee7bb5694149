"""Seeded permutations of any size, computed without storing them."""

import math
from typing import TypeVar

import numpy as np

Integers = TypeVar("Integers", int, np.ndarray)
_MASK = 2**64 - 1


def splitmix64(x: Integers) -> Integers:
  """Hashes `x`, an int below 2**64 or a uint64 array, to 64 well-mixed bits.

  Source: the finaliser of splitmix64, Steele et al. 2014.
  """
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
  return x ^ (x >> 31)


def feistel_permute(i: Integers, n: int, *, seed: int) -> Integers:
  """Returns the image of `i` under a seeded permutation of range(n).

  A Feistel network permutes range(a * b) with a * b >= n and is applied repeatedly until the result
  is below n (cycle walking). a * b is so close to n that one application is nearly always enough.
  It has six rounds, because with fewer the images of neighbours are correlated.

  Args:
    i: int, or uint64 array, in range(n).
    n: size of the permutation, below 2**63.
    seed: int; only its lowest 64 bits are used.
  """
  a = math.isqrt(n - 1) + 1
  b = -(-n // a)
  keys = [splitmix64(seed + r * 0x9E3779B97F4A7C15 & _MASK) for r in range(1, 7)]

  def once(i):
    x, y = i % a, i // a
    for r in (0, 2, 4):
      x = (x + splitmix64(y ^ keys[r]) % a) % a
      y = (y + splitmix64(x ^ keys[r + 1]) % b) % b
    return x + a * y

  i = once(i)
  if isinstance(i, np.ndarray):
    while (outside := i >= n).any():
      i[outside] = once(i[outside])
  else:
    while i >= n:
      i = once(i)
  return i
