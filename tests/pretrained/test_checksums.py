"""Checksums of arrays, compared with a loop over Python integers."""

import itertools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.parallel.mesh import make_mesh
from clip_jax.pretrained import checksums
from clip_jax.pretrained.checksums import Checksums, device_checksums, host_checksums


def scramble(h):
  h = (h ^ h >> 16) * 0x7FEB352D % 2**32
  h = (h ^ h >> 15) * 0x846CA68B % 2**32
  return h ^ h >> 16


def by_hand(x):
  """The checksum of an array, from its bytes in C order."""
  size = min(x.dtype.itemsize, 4)
  words = [w for (w,) in struct.iter_unpack({1: "<B", 2: "<H", 4: "<I"}[size], x.tobytes())]
  return sum(scramble(w ^ scramble(i)) for i, w in enumerate(words)) % 2**32


def example(dtype, shape):
  rng = np.random.default_rng(0)
  return (rng.normal(0, 30, shape) if shape else np.float64(-3.7)).astype(dtype)


DTYPES = ("float32", "int32", "uint32", "float16", jnp.bfloat16, "int8", "uint8", "bool")


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_device_and_host_agree_with_a_loop(dtype, shape):
  x = np.asarray(example(dtype, shape))
  expected = by_hand(x)
  assert int(device_checksums({"x": jnp.asarray(x)})["x"]) == expected
  assert host_checksums({"x": x}) == {"x": expected}


def test_the_host_continues_positions_from_chunk_to_chunk(monkeypatch):
  x = np.arange(5000, dtype=np.float32)
  whole = host_checksums({"x": x})
  monkeypatch.setattr(checksums, "_CHUNK", 17)
  assert host_checksums({"x": x}) == whole == {"x": by_hand(x)}
  assert host_checksums({"x": x.reshape(50, 100).T}) == {"x": by_hand(x.reshape(50, 100).T)}


def test_the_sharding_does_not_matter():
  x, mesh = example("float32", (16, 24)), make_mesh(2, 4)
  for spec in (jax.P(), jax.P("data"), jax.P(None, "fsdp"), jax.P("fsdp", "data")):
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    assert int(device_checksums(sharded)) == by_hand(x)


def test_every_flipped_bit_and_every_pair_of_signs_is_seen():
  x = example("float32", (6, 4))
  expected = host_checksums({"x": x})["x"]
  bits = x.view(np.uint32).reshape(-1)
  for i, bit in itertools.product(range(bits.size), range(32)):
    changed = bits.copy()
    changed[i] ^= np.uint32(1 << bit)
    assert host_checksums({"x": changed})["x"] != expected
  for i, j in itertools.combinations(range(bits.size), 2):  # A plain sum of words misses these.
    changed = bits.copy()
    changed[[i, j]] ^= np.uint32(1 << 31)
    assert host_checksums({"x": changed})["x"] != expected
    changed = bits.copy()
    changed[[i, j]] = changed[[j, i]]
    assert host_checksums({"x": changed})["x"] != expected


def test_json_keeps_everything_and_any_change_of_it_is_seen():
  tree = {"a": {"b": jnp.ones((2, 3))}, "n": jnp.int32(4)}
  saved = Checksums.of(12, "config", tree)
  text = json.dumps(saved.to_json())
  assert Checksums.from_json(json.loads(text)) == saved
  assert saved.arrays["a/b"][:2] == ("float32", (2, 3))
  assert saved.arrays["n"].checksum == by_hand(np.array(4, np.int32))
  assert saved.differences({"a/b": saved.arrays["a/b"].checksum, "n": 0, "c": 1}) == ["n", "c"]
  for i in range(len(text)):
    changed = text[:i] + chr(ord(text[i]) ^ 1) + text[i + 1 :]
    with pytest.raises(ValueError, match="checksums|line 1 column"):
      Checksums.from_json(json.loads(changed))
  forged = {"format": 1, "arrays": {"a": [1]}, "step": 1, "config": 2}
  forged["checksum"] = checksums.crc32(json.dumps(forged, sort_keys=True))
  for other in (None, [], {"format": 99}, forged):
    with pytest.raises(ValueError, match="unknown format"):
      Checksums.from_json(other)
