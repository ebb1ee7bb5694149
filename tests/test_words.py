"""The field's words: old names of config fields, flags, metrics and parts do not come back."""

import ast
import importlib
import inspect
import json
from pathlib import Path
import re

import pytest

from clip_jax import config as config_lib, old_names
from clip_jax.cli.flags import ALIASES
from clip_jax.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "clip_jax"
# Old name of a config field -> today's, and a part that has it.
FIELDS = {
  "block": ("chunk_size", "objectives.Clip"),
  "central": ("center_crop", "data.Resize"),
  "clip": ("grad_clip_norm", "training.adamw"),
  "decayed": ("decay_params", "training.adamw"),
  "embed": ("embed_dim", "model.TwoTowers"),
  "end_token": ("eos_id", "towers.TextTransformer"),
  "epsilon": ("norm_eps", "towers.Vit"),
  "frozen": ("freeze_params", "training.adamw"),
  "grey": ("grayscale", "data.ColorJitter"),
  "heads": ("num_heads", "towers.Vit"),
  "hidden": ("projection_hidden_dim", "model.TwoTowers"),
  "keep": ("max_checkpoints", "training.Training"),
  "length": ("context_length", "towers.TextTransformer"),
  "mlp": ("mlp_dim", "towers.Vit"),
  "mode": ("resize_mode", "data.Resize"),
  "shrink": ("jpeg_draft", "data.RandomResizedCrop"),
  "squash": ("resize_mode", "data.RandomResizedCrop"),
  "start_from": ("init_from", "training.Training"),
  "token_mlp": ("token_mlp_dim", "towers.MlpMixer"),
  "vocabulary": ("vocab_size", "towers.TextTransformer"),
}
# Fields in which such a word means something else.
ALLOWED = {
  ("towers.BitResnet", "block"),  # The kind of residual block.
  ("data.ScoreFilter", "keep"),  # The share of records to keep.
}
METRICS = {
  "clip/scale": "clip/logit_scale",
  "data_wait": "data_wait_fraction",
  "gradient_norm": "grad_norm",
}
CLASSES = {
  *("Answer", "Beside", "Cleaned", "Feed", "Known", "Labelled", "Log", "NoTokenizer", "Pairs"),
  *("Parts", "Point", "Question", "Report", "Saved", "Shared", "Stop", "TokenizerFile", "TwoStep"),
}
COMMANDS = {
  "evaluate": [],
  "export": [],
  "prepare": [],
  "score": [],
  "search": [],
  "bench": ["step"],
  "plan": ["--config=quickstart"],
  "train": ["--config=quickstart"],
}


def parts():
  """Yields (name, parameters) of everything that a saved config may call."""
  for package in config_lib.PACKAGES:
    module = importlib.import_module(f"clip_jax.{package}")
    for name in module.PARTS:
      part = getattr(module, name)
      target = part.__init__ if inspect.isclass(part) else part
      yield f"{package}.{name}", {*inspect.signature(target).parameters} - {"self"}


def test_no_field_of_a_part_has_an_old_name():
  old = {(name, field) for name, fields in parts() for field in fields & FIELDS.keys()}
  assert old == ALLOWED


def test_todays_fields_exist():
  fields = dict(parts())
  assert [field for field, part in FIELDS.values() if field not in fields[part]] == []


def test_a_saved_config_with_an_old_name_is_read_under_todays():
  """The table that old runs are read through knows every renamed field, and renames it alike."""
  renamed = {(old, new) for names in old_names.ARGUMENTS.values() for old, new in names.items()} - {
    ("resize", "interpolation")
  }
  assert renamed == {(old, new) for old, (new, _) in FIELDS.items()}
  fields = dict(parts())
  for part, names in old_names.ARGUMENTS.items():
    name = part.removeprefix("clip_jax.")
    assert {*names.values()} <= fields[name], part
    assert not {*names} & fields[name], part


@pytest.mark.parametrize(
  "path", sorted((ROOT / "tests/golden/configs").rglob("*.json")), ids=lambda path: path.stem
)
def test_no_field_of_a_config_has_an_old_name(path):
  def fields(value, part=None):
    if isinstance(value, dict):
      part = value.get("fn", part)
      for name, inner in value.items():
        yield (str(part).removeprefix("clip_jax."), name)
        yield from fields(inner)
    elif isinstance(value, list):
      for inner in value:
        yield from fields(inner)

  found = {*fields(json.loads(path.read_text()))}
  assert len(found) > 20
  assert {(part, name) for part, name in found if name in FIELDS} <= ALLOWED


def flags_of(command):
  module = importlib.import_module(f"clip_jax.{command}")
  with pytest.raises(UserError, match="There is no flag --zzz; there are") as mistake:
    module.main([*COMMANDS[command], "--zzz"])
  return {*re.findall(r"--(\w+)", str(mistake.value).partition("there are")[2])}


def test_no_command_has_an_old_flag():
  flags = {command: flags_of(command) for command in COMMANDS}
  old = {(command, name) for command in flags for name in flags[command] & ALIASES.keys()}
  assert old == {("prepare", "from")}  # Of data, not of a model.
  for command in ("evaluate", "export", "score", "search"):
    assert "model" in flags[command]
  assert {"query_image", "contact_sheet"} <= flags["search"]


def test_pages_and_configs_use_todays_flags():
  pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "launch").iterdir()]
  pages += [*(ROOT / "configs").rglob("*.py"), *PACKAGE.rglob("*.py")]
  old = re.compile(rf"(?<![\w-])--({'|'.join(ALIASES)})\b")
  for page in pages:
    lines = page.read_text().splitlines() if page.suffix != ".png" else []
    assert not [line for line in lines if old.search(line) and not is_of_prepare(page, line)], page


def is_of_prepare(page, line):
  """Whether a line with --from is about `prepare` or `init`, of which it is a flag."""
  return "--from" in line and (
    re.search("prepare|init", line) is not None
    or page == PACKAGE / "prepare.py"
    or page.parent in (PACKAGE / "data/ingest", PACKAGE / "init")
  )


def test_no_metric_or_class_has_an_old_name():
  for path in PACKAGE.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ClassDef):
        assert node.name not in CLASSES, path
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        assert node.value.removeprefix("train/") not in METRICS, path


def test_quality_is_still_a_name_of_the_score_filter():
  from clip_jax import data

  assert data.Quality is data.ScoreFilter
