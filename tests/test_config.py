"""Recording calls as configs, building them, and reading them from JSON."""

import importlib
import inspect
import json
from pathlib import Path
import pkgutil
import sys

import numpy as np
import pytest

import clip_jax
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


@pytest.mark.parametrize("package", config.PACKAGES)
def test_every_part_is_named_by_the_package_that_exports_it(package):
  exported = importlib.import_module(f"clip_jax.{package}")
  assert exported.PARTS
  for part in exported.PARTS:
    name = f"clip_jax.{package}.{part}"
    assert config.public_name(getattr(exported, part)) == name
    assert config.function(name) is getattr(exported, part)
    assert not part.startswith("_") and part in exported.__all__


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
  """`pathlib` imports os, but a checkpoint must not run commands through it."""
  text = f'{{"fn": "pathlib:os.system", "command": "touch {tmp_path}/ran"}}'
  with pytest.raises(UserError, match="pathlib:os.system, .* defined as posix:system"):
    build(config.from_json(text, trust=("pathlib",)))
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
    match="__main__:cell, which cannot be imported: .*'cell'.* notebook cell or a script",
  ):
    build(config.from_json(text, trust=("__main__",)))


def test_missing_module_is_an_error():
  text = '{"fn": "not_installed_here:part"}'
  with pytest.raises(UserError, match="not_installed_here:part, which cannot be imported: No mod"):
    build(config.from_json(text, trust=("not_installed_here",)))


def test_user_functions_are_built_without_trust_from_a_config_in_python():
  assert build(call(both, first=call(area, width=3), second=call(Nested.made), seed=0)) == (6, 1, 0)


class Nested:
  @staticmethod
  def made():
    return 1


def test_functions_that_a_saved_config_could_not_name_are_refused_when_the_config_is_written():
  with pytest.raises(UserError, match=r"learner:make_learner.*add it to PARTS"):
    call(importlib.import_module("clip_jax.model.learner").make_learner)
  with pytest.raises(UserError, match=r"<lambda>.*top level of a module"):
    call(lambda: 1)


def test_annotations_for_type_checkers_only_are_ignored():
  assert call(annotated, x=1).x == 1
  assert build(call(annotated, x=1)) == 1


def annotated(x: "NotImported | None"):  # noqa: F821
  return x


def test_a_renamed_argument_is_named_in_the_error():
  with pytest.raises(UserError, match="Vit has no argument 'heads'.*called 'num_heads' now"):
    call(Vit, heads=2)


def test_scalars_and_paths_are_saved_as_what_they_are():
  spec = call(both, first=np.float32(0.5), second=(np.int64(3), Path("/data/x")), seed=np.bool_(1))
  assert json.loads(config.to_json(spec)) == {
    "fn": f"{__name__}:both",
    "first": 0.5,
    "second": [3, "/data/x"],
    "seed": True,
  }


def test_a_value_that_cannot_be_saved_is_named():
  spec = call(both, first=call(seeded, seed={"a": (1, np.zeros(2))}), second=1, seed=0)
  with pytest.raises(UserError, match=r"config\.first\.seed\.a\.1 is array.*cannot be saved"):
    config.to_json(spec)


def test_saved_config_has_its_format_and_version():
  text = config.to_saved(call(Vit))
  assert json.loads(text)["format"] == config.FORMAT == 1
  assert json.loads(text)["clip_jax_version"] == clip_jax.__version__
  assert config.from_json(text).to_dict() == call(Vit).to_dict()


@pytest.mark.parametrize("written", [2, 1.0, -1, True, "1", None, 1e400, [1]])
def test_a_format_that_this_version_does_not_read_is_refused(written):
  saved = {**json.loads(config.to_saved(call(Vit))), "format": written, "clip_jax_version": "9.8.7"}
  with pytest.raises(UserError, match=r"has format .*written by clip_jax 9\.8\.7; .* up to 1\."):
    config.from_json(json.dumps(saved))


def test_an_argument_that_no_longer_exists_is_an_error_that_names_the_version():
  saved = {**json.loads(config.to_saved(call(Vit))), "clip_jax_version": "0.1.7", "windows": 3}
  with pytest.raises(
    UserError, match=r"clip_jax 0\.1\.7, and clip_jax.towers.Vit has no .*'windows'"
  ):
    config.from_json(json.dumps(saved))
  before = {"fn": "clip_jax.towers.vit:Vit", "windows": 3}
  with pytest.raises(UserError, match=r"before format 1, and clip_jax.towers.Vit has no .*windows"):
    config.from_json(json.dumps({"model": before}))
  with pytest.raises(
    UserError, match="written by clip_jax 0.1.7, calls clip_jax.towers.Vits,.*Vit'"
  ):
    config.from_json('{"fn": "clip_jax.towers.Vits", "clip_jax_version": "0.1.7"}')


@pytest.mark.parametrize(
  "text",
  [
    "",
    "[1]",
    "NaN",
    "{",
    "1" * 5000,
    "[" * 100_000,
    '{"a":' * 70 + "1" + "}" * 70,
    '{"a.b": 1}',
    '{"__class__": 1}',
    '{"fn": 5}',
    '{"fn": []}',
    '{"fn": {"fn": "clip_jax.towers.Vit"}}',
    '{"fn": null}',
    '{"fn": ""}',
    '{"fn": ":"}',
    '{"fn": "."}',
    '{"fn": "os"}',
    '{"fn": ".config:build"}',
    '{"fn": "clip_jax"}',
    '{"fn": "clip_jax:"}',
    '{"fn": "clip_jax.towers."}',
    '{"fn": "clip_jax..Vit"}',
    '{"fn": "clip_jax.towers.Vit", "__init__": 1}',
    '{"fn": "clip_jax.towers.Vit", "self": 1}',
    '{"fn": "clip_jax.towers.vit:Vit", "heads": 1, "num_heads": 1}',
  ],
)
def test_a_malformed_saved_config_is_a_user_error(text):
  with pytest.raises(UserError):
    config.from_json(text)


def reachable_names():
  """Names of everything in the package but the parts, in all forms that look like names."""
  parts = set(config.all_parts())
  for info in pkgutil.walk_packages(clip_jax.__path__, "clip_jax."):
    if "configs" in info.name or info.name.endswith("__main__"):
      continue
    module = importlib.import_module(info.name)
    for name, value in vars(module).items():
      inner = vars(value) if inspect.isclass(value) else {}
      for path in (
        name,
        *(f"{name}.{k}" for k in inner),
        f"{name}.__init__",
        f"{name}.__globals__",
      ):
        yield f"{info.name}:{path}"
        if f"{info.name}.{path}" not in parts:
          yield f"{info.name}.{path}"


NESTINGS = (
  lambda call: call,
  lambda call: {"model": {"image": call}},
  lambda call: {"a": [1, [{"b": call}]]},
  lambda call: {"fn": "clip_jax.data.Subset", "source": call, "size": 1},
  lambda call: {"fn": "clip_jax.data.Views", "images": {"image": [call]}, "tokenizer": None},
  lambda call: {"fn": "clip_jax.towers.ConcatTowers", "towers": [{"fn": "clip_jax.towers.Vit",
                                                                 "size": call}]},
)  # fmt: skip


def test_no_callable_of_the_package_but_the_parts_can_be_reached_from_json(monkeypatch):
  monkeypatch.setattr(config, "closest", lambda *_: None)  # It would take most of the time.
  names = sorted({*reachable_names(), "clip_jax.data.PARTS", "clip_jax.cli.command:run_command"})
  assert len(names) > 3000
  assert {"clip_jax.config:build", "clip_jax.data.tokenizer:SentencePiece.__call__"} < {*names}
  accepted = []
  for i, name in enumerate(names):
    text = json.dumps(NESTINGS[i % len(NESTINGS)]({"fn": name, "x": 1}))
    try:
      config.from_json(text, trust=(name.partition(":")[0], "clip_jax", "clip_jax.data"))
      accepted.append(name)
    except UserError as error:
      # Old names of parts resolve to the parts, and lack the argument.
      assert "which is not one of the parts" in str(error) or "has no argument 'x'" in str(error)
  assert not accepted


@pytest.mark.parametrize("nest", NESTINGS)
def test_no_nesting_hides_a_call(nest, tmp_path):
  for name in ("clip_jax.config:build", "clip_jax.config:function", "os:system", "builtins:exec"):
    text = json.dumps(nest({"fn": name, "command": f"touch {tmp_path}/ran"}))
    with pytest.raises(UserError, match=name):
      build(config.from_json(text))
  assert not list(tmp_path.iterdir())


def test_a_refused_module_is_not_imported(tmp_path, monkeypatch):
  (tmp_path / "untrusted_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
  monkeypatch.syspath_prepend(tmp_path)
  for name in ("untrusted_module:f", "untrusted_module.f", "untrusted_module"):
    with pytest.raises(UserError):
      config.from_json(json.dumps({"fn": name}), trust=("untrusted", "untrusted_module.f"))
  assert not (tmp_path / "ran").exists()


def test_trust_in_one_module_given_as_a_string_trusts_only_that():
  text = config.to_json(call(area, width=3))
  assert build(config.from_json(text, trust=__name__)) == 6
  with pytest.raises(UserError, match="not part of clip_jax"):
    config.from_json(text, trust=f"{__name__}_and_more")


def test_modules_are_those_of_the_users_own_code():
  assert config.modules(call(both, first=call(Vit), second=1, seed=0)) == (__name__,)
  assert config.modules(call(Vit)) == ()
