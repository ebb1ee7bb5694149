#!/usr/bin/env bash
# Builds the documentation site. Warnings, such as a broken link, are errors.
#
#   .ci/docs.sh [OUT]      OUT is build/site by default, which git ignores
#
# PYTHON=python    an interpreter with the packages of the [docs] extra
set -euo pipefail
if [ $# -gt 0 ]; then out=$(realpath -m "$1"); fi
cd "$(dirname "$0")/.."
out=${out:-$PWD/build/site}
# mkdocs-material prints a page about the future of MkDocs otherwise.
export NO_MKDOCS_2_WARNING=1
"${PYTHON:-python}" -m mkdocs build --strict --site-dir "$out"   # With --quiet, --strict ignores warnings.
echo "$out/index.html"
