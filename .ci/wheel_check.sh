#!/usr/bin/env bash
# Builds the wheel, installs it in a fresh virtual environment, and uses it from an empty folder, as
# somebody without a checkout would.
#
#   .ci/wheel_check.sh
#
# PYTHON=python3           the interpreter of the new environment
# WHEEL_CHECK_PYTHON=...   an interpreter that has the dependencies; the new environment then shares
#                          them, without the copy of clip_jax there, instead of installing them again
set -euo pipefail
cd "$(dirname "$0")/.."
python=${WHEEL_CHECK_PYTHON:-${PYTHON:-python3}}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unset PYTHONPATH

step() { echo "== $*" >&2; "$@"; }

# From a copy, because setuptools would pack files of earlier builds that it finds in build/.
mkdir "$scratch/source" "$scratch/empty"
cp -R setup.py pyproject.toml README.md LICENSE clip_jax configs "$scratch/source"
step "$python" -m pip wheel --quiet --no-deps --wheel-dir "$scratch" "$scratch/source"
wheel=("$scratch"/*.whl)

"$python" -m venv "$scratch/venv"
new=$scratch/venv/bin
if [ -n "${WHEEL_CHECK_PYTHON:-}" ]; then
  # A line of a .pth file adds that folder, but not the editable installs in it.
  packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
  packages "$python" > "$(packages "$new/python")/dependencies.pth"
  step "$new/pip" install --quiet --no-deps "${wheel[0]}"
else
  step "$new/pip" install --quiet "${wheel[0]}"
  step "$new/pip" check
fi

cd "$scratch/empty"
export JAX_PLATFORMS=cpu
"$new/python" - <<'PYTHON'
from importlib import metadata, resources
from pathlib import Path
import sys

import clip_jax

where = Path(clip_jax.__file__)
assert Path(sys.prefix) in where.parents, f"{where} is not from the wheel"
assert resources.files("clip_jax").joinpath("py.typed").is_file(), "py.typed is missing"
assert metadata.version("scaling-clip-jax") == clip_jax.__version__
clip_jax.losses.info_nce; clip_jax.data.Subset; clip_jax.towers.Vit
PYTHON
step "$new/clip-jax" --help > help.txt
grep -q "clip-jax train" help.txt
step "$new/python" -m clip_jax.train --config=quickstart --workdir=run --print > config.json
grep -q '"batch_size": 128' config.json
[ ! -e run ] || { echo "--print wrote to the workdir" >&2; exit 1; }
step "$new/clip-jax" train --config=quickstart --workdir=run \
  --config.train.steps=2 --config.train.eval_every=0
grep -q '"step": 2, "train/' run/metrics.jsonl
step "$new/python" -c '
import clip_jax
z = clip_jax.load("run").encode_text(["a red flag", "a sleeping cat"])
assert z.shape == (2, 128), z.shape'
echo "The wheel works: $(basename "${wheel[0]}")"
