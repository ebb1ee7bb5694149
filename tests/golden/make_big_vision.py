"""Makes the tiny checkpoints in big_vision/ with big_vision's own models; see README.md."""

from pathlib import Path
import sys
import types

import flax
import jax
import numpy as np

HERE = Path(__file__).parent

# Stub out these two modules: the models only use them to load checkpoints.
for name in ("big_vision.utils", "big_vision.models.common"):
  sys.modules[name] = types.ModuleType(name)
import big_vision
import big_vision.models

big_vision.utils = sys.modules["big_vision.utils"]
big_vision.models.common = sys.modules["big_vision.models.common"]
from big_vision.models.proj.image_text import two_towers


def make(name, seed, **options):
  rng = np.random.default_rng(seed)
  tower = dict(variant=None, width=32, depth=2, mlp_dim=48, num_heads=4)
  model = two_towers.Model(
    image={**tower, "patch_size": (8, 8), "head_zeroinit": False, **options.pop("image")},
    text={**tower, "vocab_size": 64, **options.pop("text", {})},
    **options,
  )
  image = rng.integers(0, 256, (3, 24, 24, 3)).astype(np.uint8)
  tokens = rng.integers(2, 64, (3, 8)).astype(np.int32)
  tokens[0, 3:], tokens[1, 6:] = 1, 1
  pixels = image / np.float32(127.5) - 1
  params = model.init(jax.random.key(0), pixels, tokens)["params"]
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  shaken = {}
  for path, x in flat.items():
    single = "embed" in path or "probe" in path or x.ndim < 2
    fan = 1 if single else max(1, x.size // x.shape[-1] // 2)
    one = 1.0 if path.endswith("scale") else 0.0
    shaken[path] = (one + rng.normal(size=x.shape) * (0.2 if x.ndim < 2 else fan**-0.5)).astype(
      np.float32
    )
  shaken["t"] = np.full((1,), 2.3, np.float32)
  if "b" in shaken:
    shaken["b"] = np.full((1,), -4.5, np.float32)
  z_image, z_text, out = model.apply(
    {"params": flax.traverse_util.unflatten_dict(shaken, sep="/")}, pixels, tokens
  )
  folder = HERE / "big_vision"
  folder.mkdir(exist_ok=True)
  np.savez_compressed(folder / f"{name}.npz", **{f"params/{k}": x for k, x in shaken.items()})
  np.savez_compressed(
    folder / f"{name}_outputs.npz",
    image=image,
    tokens=tokens,
    z_image=z_image,
    z_text=z_text,
    scale=np.float32(out["t"][0]),
    bias=np.float32(out["b"][0] if "b" in out else 0),
  )


if __name__ == "__main__":
  make(
    "siglip",
    0,
    image={"pool_type": "map", "scan": True},
    text={"scan": True},
    out_dim=(None, 32),
    temperature_init=10.0,
    bias_init=-10.0,
  )
  make("lit", 1, image={"pool_type": "tok"}, out_dim=(20, 20), temperature_init=10.0)
