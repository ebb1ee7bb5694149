"""Writes the resolved values of every config to tests/golden/configs, which a test compares.

  python tests/golden/make_configs.py

A changed default, which may be far from the configs, then shows in the diff of these files. Each
has the config of the first argument, or the first run of a grid, in full; of the others only what
differs from it.
"""

import json
from pathlib import Path
import shutil
import sys
from typing import Any

sys.path = [p for p in sys.path if Path(p) != Path(__file__).parent]  # It has a clip_jax/, too.

from ml_collections.config_dict import ConfigDict

from clip_jax.cli.config_files import load_function
from clip_jax.config import entries, to_json

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDER = Path(__file__).parent / "configs"
# The arguments of each config, given after the colon; configs without an entry take none.
ARGUMENTS = {
  "benchmark": ("B/16", "resnet50", "convnext-T", "swin-T", "mixer-B/32", "slip-B/16", "B/32@DIR"),
  "global_clip": ("v0", "v1", "v2", "v3"),
  "finetune": (str(Path(__file__).parent / "huggingface_clip"),),
  "clip_augment": ("crop_flip", "randaugment", "stacked"),
  **dict.fromkeys(
    ("slip", "flip", "flip_tuning", "siglip", "clipa", "clipa_tuning"), ("study", "paper")
  ),
}
NEED_DATA = ("stored_features",)  # Configs that only tests make the data of.
RECIPES = ("ViT-B/32,CLIP", "ViT-L/16,SLIP,40", "ResNet-50,CLIP+DA", "Swin-T,FLIP")


def names() -> list[str]:
  """Every config, as quickstart or study/vits."""
  return [
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in sorted(CONFIGS.rglob("*.py"))
    if path.stem not in ("__init__", *NEED_DATA)
  ]


def variants(name: str) -> dict[str, ConfigDict]:
  """The configs of a file by argument, or the runs of a grid by name."""
  path = CONFIGS / f"{name}.py"
  if "def get_grid(" in path.read_text():
    return {run.name: run.config for run in load_function(str(path), "get_grid", "grid")().runs}
  arguments = RECIPES if name == "study/recipe" else ARGUMENTS.get(name, ("",))
  return {
    argument: load_function(f"{path}:{argument}" if argument else str(path), "get_config")()
    for argument in arguments
  }


def resolved(name: str) -> dict[str, Any]:
  """What is stored of a config: by variant, the first in full, of others what differs from it."""
  (first, config), *others = variants(name).items()
  base, absent = entries(config), json.dumps("not there")
  stored = {first: json.loads(to_json(config))}
  for other, config in others:
    there = entries(config)
    stored[other] = {
      entry: json.loads(there.get(entry, absent))
      for entry in sorted(base.keys() | there.keys())
      if base.get(entry) != there.get(entry)
    }
  return stored


def text(name: str) -> str:
  return json.dumps(resolved(name), indent=1).replace(str(CONFIGS.parent), "CLONE") + "\n"


def main() -> None:
  shutil.rmtree(FOLDER, ignore_errors=True)
  for name in names():
    path = FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(name))


if __name__ == "__main__":
  main()
