"""Recording calls as configs, building them, and reading them from JSON."""

from pathlib import Path
import sys

import pytest

from clip_jax import config
from clip_jax.cli.flags import parse
from clip_jax.config import build, call
from clip_jax.errors import UserError
from clip_jax.objectives.clip import Clip
from clip_jax.towers.vit import Vit


def area(width, height=2, *, depth: int | None = None):
  return width * height * (depth or 1)


def both(first, second, seed):
  return first, second, seed


def seeded(seed):
  return seed


def test_call_records_every_default():
  assert call(area, width=3).to_dict() == {
    "fn": f"{__name__}:area",
    "width": 3,
    "height": 2,
    "depth": None,
  }


def test_build_executes_inner_calls_first():
  assert build(call(both, first=call(area, width=3), second=(call(area, width=5), 7), seed=1)) == (
    6,
    (10, 7),
    1,
  )


def test_context_is_passed_to_every_call_that_lacks_the_argument():
  assert build(call(both, first=call(seeded), second=call(seeded, seed=9)), seed=5) == (5, 9, 5)


def test_default_of_none_can_be_overridden():
  spec = call(area, width=3)
  spec.depth = 4
  assert build(spec) == 24


def test_default_of_none_keeps_its_type():
  with pytest.raises(TypeError):
    call(area, width=3).depth = "deep"


def sized(
  size: int | str | None = None,
  scale: tuple[float, float] = (0, 1),
  names: dict[str, float] | None = None,
):
  return size, scale, names


def shaped(size: int | tuple[int, int] = 224):
  return size


@pytest.mark.parametrize(
  "before, flag, after", [(224, "(224,288)", (224, 288)), ((224, 288), "96", 96), (224, "96", 96)]
)
def test_override_can_switch_between_one_side_and_two(before, flag, after, tmp_path, monkeypatch):
  (tmp_path / "c.py").write_text(
    f"from clip_jax.config import call\nfrom {__name__} import shaped\n"
    f"def get_config():\n  return call(shaped, size={before!r})\n"
  )
  arguments = [f"--config={tmp_path}/c.py", f"--config.size={flag}"]
  monkeypatch.setattr("sys.argv", ["train", *arguments])
  spec = parse(arguments, "", config=True).config
  assert build(spec) == after
  assert build(config.from_json(config.to_json(spec), trust=(__name__,))) == after


@pytest.mark.parametrize(
  "before, flag, after",
  [
    (None, "1000", 1000),
    (None, "10M", "10M"),
    (1000, "10%", "10%"),
    ("10M", "1000", 1000),
    ("10M", "None", None),
  ],
)
def test_override_can_switch_between_number_and_string(before, flag, after, tmp_path, monkeypatch):
  (tmp_path / "c.py").write_text(
    f"from clip_jax.config import call\nfrom {__name__} import sized\n"
    f"def get_config():\n  return call(sized, size={before!r})\n"
  )
  arguments = [f"--config={tmp_path}/c.py", f"--config.size={flag}"]
  monkeypatch.setattr("sys.argv", ["train", *arguments])
  spec = parse(arguments, "", config=True).config
  assert build(spec) == (after, (0, 1), None)
  assert config.from_json(config.to_json(spec), trust=(__name__,)).size == after


def test_override_can_set_a_length_to_none(monkeypatch):
  file = f"{Path(__file__).parent}/run_config.py"
  arguments = [f"--config={file}", "--config.train.steps=None", "--config.train.epochs=0.5"]
  monkeypatch.setattr("sys.argv", ["train", *arguments])
  training = parse(arguments, "", config=True).config.train
  assert (training.steps, training.samples, training.epochs) == (None, None, 0.5)


def test_unknown_argument_error_suggests_the_right_name():
  with pytest.raises(UserError, match="no argument 'patches'; it has size, patch.*mean 'patch'"):
    call(Vit, patches=16)


def test_missing_value_is_an_error():
  with pytest.raises(UserError, match="needs a value for its argument 'width'"):
    build(call(area))


def test_config_survives_json():
  spec = call(Vit, image_size=(32, 64))
  again = config.from_json(config.to_json(spec))
  assert again.to_dict() == spec.to_dict()
  assert again.image_size == (32, 64)


def test_entries_are_named_as_on_the_command_line():
  spec = call(both, first=call(area, width=3), second=(1, None), seed=2)
  assert config.entries(spec) == {
    "fn": f'"{__name__}:both"',
    "first.fn": f'"{__name__}:area"',
    "first.width": "3",
    "first.height": "2",
    "first.depth": "null",
    "second": "[1, null]",
    "seed": "2",
  }


def test_loaded_config_may_call_only_this_package():
  text = config.to_json(call(both, first=call(Clip), second=1, seed=2))
  with pytest.raises(UserError, match=r"both, which is not part of clip_jax.*--trust="):
    config.from_json(text)
  assert config.from_json(text, trust=(__name__,)).second == 1


def test_calls_in_a_tuple_survive_json():
  text = config.to_json(call(both, first=(call(area, width=3), 1), second=2, seed=3))
  assert build(config.from_json(text, trust=(__name__,))) == ((6, 1), 2, 3)


def test_loaded_config_cannot_hide_a_call_in_a_list():
  with pytest.raises(UserError, match="os:system"):
    config.from_json('{"steps": [{"inner": {"fn": "os:system", "command": "true"}}]}')


def test_trust_in_a_module_does_not_extend_to_its_imports(tmp_path):
  """`clip_jax.training.startup` imports os, but a checkpoint must not run commands through it."""
  text = f'{{"fn": "clip_jax.training.startup:os.system", "command": "touch {tmp_path}/ran"}}'
  with pytest.raises(
    UserError, match="clip_jax.training.startup:os.system, .* defined as posix:system"
  ):
    build(config.from_json(text))
  with pytest.raises(UserError, match=f"{__name__}:again, .* defined as {__name__}:area"):
    build(
      config.from_json(
        config.to_json(call(area, width=1)).replace(":area", ":again"), trust=(__name__,)
      )
    )
  assert not (tmp_path / "ran").exists()


again = area


def test_function_from_a_notebook_cell_can_be_trusted_while_it_is_defined(monkeypatch):
  def cell(width):
    return 2 * width

  cell.__module__, cell.__qualname__ = "__main__", "cell"
  monkeypatch.setattr(sys.modules["__main__"], "cell", cell, raising=False)
  text = config.to_json(call(cell, width=3))
  with pytest.raises(UserError, match=r"__main__:cell, which is not part.*trust=\('__main__',\)"):
    config.from_json(text)
  assert build(config.from_json(text, trust=("__main__",))) == 6
  monkeypatch.delattr(sys.modules["__main__"], "cell")
  with pytest.raises(
    UserError,
    match="__main__:cell, which was not found: .*'cell'.* notebook cell"
    " or a script: run that first, or move the definition",
  ):
    build(config.from_json(text, trust=("__main__",)))


def test_missing_module_is_an_error():
  text = '{"fn": "not_installed_here:part"}'
  with pytest.raises(UserError, match="not_installed_here:part, which was not found: No module"):
    build(config.from_json(text, trust=("not_installed_here",)))
