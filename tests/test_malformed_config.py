"""Random damage to a saved config gives a config or one message, never another exception."""

import json
from pathlib import Path

import pytest

from clip_jax.config import from_json
from clip_jax.errors import UserError

SAVED = sorted((Path(__file__).parent / "golden/clip_jax").glob("*/workdir/config.json"))


@pytest.mark.parametrize("depth", [200, 500, 900, 5000, 10**6])
@pytest.mark.parametrize("form", ['{"x":%s1%s}', '{"x":[%s%s]}'], ids=("dict", "list"))
def test_deep_nesting(depth, form):
  begin, end = ('{"x":', "}") if form.startswith('{"x":%') else ("[", "]")
  try:
    from_json(form % (begin * depth, end * depth))
  except UserError:
    pass


@pytest.mark.parametrize(
  "header",
  [
    {"format": "1"},
    {"format": None},
    {"format": []},
    {"format": float("nan")},
    {"format": -1},
    {"clip_jax_version": 7},
    {"clip_jax_version": {"fn": "clip_jax.towers.Vit"}},
  ],
  ids=str,
)
def test_a_malformed_header(header):
  config = json.loads(SAVED[-1].read_text()) | header
  try:
    from_json(json.dumps(config))
  except UserError:
    pass
