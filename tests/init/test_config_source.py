"""A config file that is written has the same config when it is read."""

import pytest

from clip_jax.cli.config_files import load_function
from clip_jax.config import to_json
from clip_jax.init.config_source import config_source
from test_configs import CASES, module_of


@pytest.mark.parametrize("path, arguments", CASES)
def test_every_config_of_the_package_survives_being_written_as_source(path, arguments, tmp_path):
  config = module_of(path).get_config(*arguments)
  file = tmp_path / "written.py"
  file.write_text(config_source(config, 'A "quoted" title with """ and \\.', ["A note. " * 30]))
  assert to_json(load_function(str(file), "get_config")()) == to_json(config)
  lines = file.read_text().splitlines()
  assert max(map(len, lines)) <= 100


def test_defaults_are_left_out(tmp_path):
  quickstart = next(case for case in CASES if case.id == "quickstart")
  text = config_source(module_of(quickstart.values[0]).get_config(), "T")
  assert "call(HorizontalFlip)" in text and "max_scale" not in text and "mesh=" not in text
  assert "objective=call(Clip, temperature=0.1)," in text
