"""Counts which of open_clip's own configs can be read, without any weights.

  python tests/peers/open_clip_configs.py dump F.json     # where open_clip is installed
  python tests/peers/open_clip_configs.py check F.json    # where clip_jax is installed

The first command makes every model without memory and writes its config with the names and shapes
of its arrays. The second matches them with the name tables of `clip_jax.pretrained.open_clip`, and
prints what is read, and why the rest is not.
"""

from collections import Counter
import json
import os
from pathlib import Path
import sys


def dump(path):
  os.environ["HF_HUB_OFFLINE"] = "1"
  import open_clip
  import torch

  found = {}
  for name in open_clip.list_models():
    config = open_clip.get_model_config(name)
    if "hf_model_name" in config["text_cfg"]:  # Its architecture is on the Hugging Face Hub.
      found[name] = {"config": config, "arrays": None}
      continue
    options = dict(config)
    custom = options.pop("custom_text", False)
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CLIP
    with torch.device("meta"):
      model = (open_clip.CustomTextCLIP if custom and kind is open_clip.CLIP else kind)(**options)
    arrays = {name: list(x.shape) for name, x in model.state_dict().items()}
    found[name] = {"config": config, "arrays": arrays}
  Path(path).write_text(json.dumps(found))


def problem(name, config, arrays):
  """Why a model cannot be read; "" if it can."""
  import numpy as np

  from clip_jax.errors import UserError
  from clip_jax.model.learner import split_state
  from clip_jax.parallel.tree_paths import leaves_by_name
  from clip_jax.pretrained import name_table, open_clip
  from clip_jax.pretrained.model_bundle import abstract_model

  if arrays is None:
    return "a text tower from the Hugging Face Hub"
  blank = lambda shape: np.broadcast_to(np.float32(0), shape)  # Takes no memory.
  arrays = {name: blank(shape) for name, shape in arrays.items()}
  settings = {"mean": open_clip.OPENAI_MEAN, "std": open_clip.OPENAI_STD}
  try:
    open_clip._check({"model_cfg": config}, name)
    model, table, arrays = open_clip.understood(config, arrays, settings, name)
    tree = {
      path: blank(x.shape)
      for part in split_state(abstract_model(model))[1:]
      for path, x in leaves_by_name(part).items()
    }
    scalars = {"log_scale": blank(()), **({"bias": blank(())} if "logit_bias" in arrays else {})}
    name_table.checked_views(table, tree | scalars, arrays, name, ignored=open_clip.IGNORED)
  except UserError as error:
    return str(error).replace(name, "NAME").splitlines()[0][:150]
  return ""


def check(path):
  found = json.loads(Path(path).read_text())
  problems = {name: problem(name, **entry) for name, entry in found.items()}
  print("\n".join(f"{'no ' if why else 'yes'}  {name}  {why}" for name, why in problems.items()))
  read = sum(not why for why in problems.values())
  print(f"\n{read} of {len(found)} configs are read. Why the others are not:")
  for why, n in Counter(filter(None, problems.values())).most_common(20):
    print(f"{n:4}  {why}")


if __name__ == "__main__":
  {"dump": dump, "check": check}[sys.argv[1]](sys.argv[2])
