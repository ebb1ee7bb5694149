"""Importing the package, loading a model and building a config leave the process as it was."""

import json
from pathlib import Path
import subprocess
import sys

import pytest

import clip_jax

ROOT = Path(__file__).parent.parent
RUN = ROOT / "tests/golden/clip_jax" / clip_jax.__version__ / "workdir"

SNAPSHOT = """
import importlib, json, locale, logging, os, random, signal, sys, threading, time, warnings

def logger(one):
  return [one.level, one.propagate, one.disabled, list(map(repr, one.handlers)),
          list(map(repr, one.filters))]

def snapshot():
  import jax, numpy, PIL.Image
  from absl import flags
  from ml_collections.config_flags import config_flags
  found = {
    "root logger": logger(logging.root),
    "logger class": repr(logging.getLoggerClass()),
    "log record factory": repr(logging.getLogRecordFactory()),
    "logging disabled below": logging.root.manager.disable,
    "absl flags parsed": flags.FLAGS.is_parsed(),
    "parsers of ml_collections": {repr(k): id(v) for k, v in
                                  config_flags._FIELD_TYPE_TO_PARSER.items()},
    "warnings filters": list(map(repr, warnings.filters)),
    "showwarning": repr(warnings.showwarning),
    "signal mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
    "sys.path": list(sys.path),
    "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.unraisablehook)],
    "streams": [id(sys.stdin), id(sys.stdout), id(sys.stderr)],
    "working directory": os.getcwd(),
    "recursion limit": sys.getrecursionlimit(),
    "locale": locale.setlocale(locale.LC_ALL),
    "largest image of Pillow": PIL.Image.MAX_IMAGE_PIXELS,
    "numpy errors": numpy.geterr(),
    "numpy random": repr(numpy.random.get_state()),
    "random": hash(random.getstate()),
  }
  found |= {f"environment {k}": v for k, v in os.environ.items()}
  found |= {f"absl flag {k}": [repr(flags.FLAGS[k]._value), flags.FLAGS[k].present]
            for k in flags.FLAGS}
  found |= {f"signal {s.name}": repr(signal.getsignal(s)) for s in signal.valid_signals()
            if isinstance(s, signal.Signals)}
  found |= {f"jax config {k}": repr(v) for k, v in jax.config.values.items()}
  fresh = [logging.NOTSET, True, False, [], []]
  found |= {f"logger {k}": logger(v) for k, v in logging.root.manager.loggerDict.items()
            if isinstance(v, logging.Logger) and logger(v) != fresh}
  return found
"""

USE = """
def use():
  import pkgutil
  from pathlib import Path
  import clip_jax
  for info in pkgutil.walk_packages(clip_jax.__path__, "clip_jax."):
    if not info.name.endswith("__main__"):
      importlib.import_module(info.name)
  import numpy as np
  embedder = clip_jax.load(RUN)
  embedder.encode_text(["a red flag"])
  embedder.encode_image([np.zeros((9, 9, 3), np.uint8)])
  from clip_jax import config
  from clip_jax.cli.flags import parse
  from clip_jax.training.setup import build_setup
  build_setup(config.from_json((Path(RUN) / "config.json").read_text()))
  overrides = ["--config.train.steps=3", "--config.train.init_from=None"]
  flags = parse(["--config=quickstart", *overrides], "", config=True)
  build_setup(flags.config)
"""


def run(code):
  done = subprocess.run(
    [sys.executable, "-c", SNAPSHOT + USE.replace("RUN", repr(str(RUN))) + code],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def libraries():
  """Modules of other packages that are imported on the way; what they do then is theirs."""
  return run("""
use()
own = {*sys.stdlib_module_names, "clip_jax", "__main__", "__mp_main__"}
print(json.dumps(sorted(m for m in sys.modules if m.partition(".")[0] not in own)))
""")


def test_importing_loading_and_building_leave_the_process_as_it_was(libraries):
  assert "orbax.checkpoint" in libraries and len(libraries) > 500
  changes = run(f"""
for name in {libraries!r}:
  try:
    importlib.import_module(name)
  except Exception:
    pass
import jax
jax.devices()
before = snapshot()
use()
after = snapshot()
print(json.dumps([[k, before.get(k), after.get(k)] for k in sorted({{*before, *after}})
                  if before.get(k) != after.get(k)], default=str))
""")
  assert not changes


def test_the_snapshot_sees_changes():
  changed = run("""
import jax, absl.flags, clip_jax.cli.command
from ml_collections import config_flags
before = snapshot()
logging.getLogger("absl").setLevel(logging.CRITICAL)
logging.getLogger("new").addHandler(logging.NullHandler())
absl.flags.FLAGS.mark_as_parsed()
config_flags.register_flag_parser_for_type(int, absl.flags.FloatParser())
os.environ["NEW"] = "1"
warnings.simplefilter("ignore")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
jax.config.update("jax_debug_nans", True)
after = snapshot()
print(json.dumps([k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]))
""")
  assert changed == [
    "absl flags parsed",
    "environment NEW",
    "jax config jax_debug_nans",
    "logger absl",
    "logger new",
    "parsers of ml_collections",
    "signal SIGTERM",
    "warnings filters",
  ]
