#!/usr/bin/env bash
# Runs the accelerator benchmarks of docs/speed.md on this machine, and writes a table and a JSON
# file for each to OUT.
#
#   launch/measure.sh [--dry-run] OUT [flags of clip_jax.bench]
#
# BUDGET=480       seconds for everything; what does not fit is stopped or skipped, and named
# RECORDS=DIR      output of `prepare --max_side=256`; also trains a ViT-B/32 on it, to measure how
#                  long training waits for data
# PYTHON=python    the Python to run
#
# The most important benchmarks come first, and each writes its numbers when it ends. The batch sizes
# suit one GPU with 141 GB. The flags given here override them: for a GPU with 80 GB, use
# --config.data.batch_size=256.
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
budget=${BUDGET:-480}

run() {
  local name=$1 left=$((budget - SECONDS))
  shift
  local command=("${PYTHON:-python}" -m "$@")
  if [ -n "$dry" ]; then
    printf '%q ' "${command[@]}" | sed 's/ $/\n/'
    return
  fi
  if [ "$left" -lt 20 ]; then
    echo "== $name: skipped, because BUDGET=$budget seconds are over"
    failed="$failed $name"
    return
  fi
  mkdir -p "$out"
  echo "== $name, $SECONDS s"
  # Continue after a failure: if one runs out of memory, the others may still fit.
  timeout "$left" "${command[@]}" | tee "$out/$name.txt" || failed="$failed $name"
}

step() {
  local name=$1
  shift
  run "$name" clip_jax.bench step "--json=$out/$name.json" "$@"
}

b16=("--config=$config:B/16" --config.data.batch_size=1024)
l16=("--config=$config:L/16" --config.data.batch_size=512)
step clip-b16 "${b16[@]}" "$@"
step clip-l16 "${l16[@]}" "$@"
step clip-b16-xla "${b16[@]}" --config.model.image.attention=xla "$@"
step flip-l16 "${l16[@]}" --config.objective.keep_patches=0.5 "$@"
step slip-b16 "--config=$config:slip-B/16" --config.data.batch_size=256 "$@"
step clip-s32 "--config=$config:S/32" --config.data.batch_size=4096 "$@"
step resnet50 "--config=$config:resnet50" --config.data.batch_size=512 "$@"
run loss clip_jax.bench loss "--json=$out/loss.json"
step clip-b32 "--config=$config:B/32" --config.data.batch_size=2048 "$@"
step clip-b16-trace "${b16[@]}" "--profile=$out/trace" "$@"
step clip-b16-loop "${b16[@]}" --config.model.image.unroll=1 --config.model.text.unroll=1 "$@"
if [ -n "${RECORDS:-}" ]; then  # train/data_wait_fraction in its log is the fraction of time spent waiting.
  run data-b32 clip_jax.train "--config=$config:B/32@$RECORDS" "--workdir=$out/data-b32" \
    --config.data.batch_size=2048 --config.train.samples=204800 --config.train.log_every=20 \
    --config.optimizer.schedule.warmup=10 "--config.data.workers=$(nproc)" "$@"
fi
if [ -n "$failed" ]; then
  echo "failed:$failed" >&2
  exit 1
fi
