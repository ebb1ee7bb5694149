#!/usr/bin/env bash
# Measures on this machine's accelerators what docs/speed.md reports, a table and a JSON file each.
#
#   launch/measure.sh [--dry-run] OUT [flags of clip_jax.bench]
#
# RECORDS=DIR      of `prepare --max_side=256`: trains a ViT-B/32 on them, for the wait for data
# PYTHON=python    of the environment
#
# Batches are for one GPU of 141 GB, on which all takes about a quarter of an hour; flags come last
# and replace: on one of 80 GB --config.data.batch_size=256.
set -euo pipefail

dry=
if [ "${1:-}" = --dry-run ]; then dry=1; shift; fi
if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
out=$1
shift
config=configs/benchmark.py
failed=

run() {
  local name=$1
  shift
  local command=("${PYTHON:-python}" -m "$@")
  if [ -n "$dry" ]; then
    printf '%q ' "${command[@]}" | sed 's/ $/\n/'
    return
  fi
  mkdir -p "$out"
  echo "== $name"
  # What one has no memory for says nothing of the others.
  "${command[@]}" | tee "$out/$name.txt" || failed="$failed $name"
}

step() {
  local name=$1
  shift
  run "$name" clip_jax.bench step "--json=$out/$name.json" "$@"
}

b16=("--config=$config:B/16" --config.data.batch_size=1024)
l16=("--config=$config:L/16" --config.data.batch_size=512)
step clip-b16 "${b16[@]}" "--profile=$out/trace" "$@"
step clip-l16 "${l16[@]}" "$@"
step flip-l16 "${l16[@]}" --config.objective.keep_patches=0.5 "$@"
step slip-b16 "--config=$config:slip-B/16" --config.data.batch_size=256 "$@"
step clip-b32 "--config=$config:B/32" --config.data.batch_size=2048 "$@"
step clip-b16-xla "${b16[@]}" --config.model.image.attention=xla "$@"
step clip-b16-loop "${b16[@]}" --config.model.image.unroll=1 --config.model.text.unroll=1 "$@"
if [ -n "${RECORDS:-}" ]; then  # In its log, train/data_wait is the share of the time waited.
  run data-b32 clip_jax.train "--config=$config:B/32@$RECORDS" "--workdir=$out/data-b32" \
    --config.data.batch_size=2048 --config.train.samples=204800 --config.train.log_every=20 \
    --config.optimizer.schedule.warmup=10 "--config.data.workers=$(nproc)" "$@"
fi
if [ -n "$failed" ]; then
  echo "failed:$failed" >&2
  exit 1
fi
