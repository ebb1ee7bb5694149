#!/usr/bin/env bash
# Trains in N processes on this machine, each with CPU devices of its own: a pod on a laptop.
#
#   launch/local_pod.sh [--dry-run] N CONFIG [flags of clip_jax.train, --workdir=DIR among them]
#
# Process 0 writes here, the others into files that are named at the start. When processes ask to be
# started again (exit code 75, after SIGTERM) or die of a signal, all of them are, from the newest
# checkpoint. SIGTERM to this script goes to all of them, and ends it when they have saved.
#
# DEVICES=4    devices of each process
# ATTEMPTS=10  starts, at most
# GRACE=30     seconds that the others have to end by themselves when one has failed
# PYTHON=python
set -uo pipefail

dry=
if [ "${1:-}" = --dry-run ]; then dry=1; shift; fi
if [ $# -lt 2 ] || ! [ "$1" -gt 0 ] 2>/dev/null; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
n=$1 config=$2
shift 2
cd "$(dirname "$0")/.." || exit 1

stopping=
pids=()
# shellcheck disable=SC2329
stop() { stopping=1; kill -TERM "${pids[@]}" 2>/dev/null; }
trap stop TERM INT

# Runs all processes once; returns the exit code of the first one that failed, or 2 if any did so.
run() {
  local port=$((20000 + RANDOM % 20000)) i
  local -a command
  pids=()
  for ((i = 0; i < n; i++)); do
    command=(env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=${DEVICES:-4}" "${PYTHON:-python}" -m
             clip_jax.train "--config=$config" "$@" "--coordinator=127.0.0.1:$port"
             "--processes=$n" "--process=$i")
    if [ -n "$dry" ]; then
      echo "${command[*]}"
    elif [ "$i" = 0 ]; then
      "${command[@]}" &
      pids+=($!)
    else
      "${command[@]}" > "$logs/$i.log" 2>&1 &
      pids+=($!)
      echo "process $i: pid $!, log $logs/$i.log"
    fi
  done
  [ -n "$dry" ] && return 0

  local left=("${pids[@]}") alive pid code first=0 deadline=
  while [ ${#left[@]} -gt 0 ]; do
    alive=()
    for pid in "${left[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        alive+=("$pid")
        continue
      fi
      wait "$pid"
      code=$?
      if [ $code != 0 ] && { [ $first = 0 ] || [ $code = 2 ]; }; then first=$code; fi
      if [ $code != 0 ] && [ -z "$deadline" ]; then deadline=$((SECONDS + ${GRACE:-30})); fi
    done
    left=(${alive[@]+"${alive[@]}"})
    if [ -n "$deadline" ] && [ $SECONDS -ge "$deadline" ] && [ ${#left[@]} -gt 0 ]; then
      kill -KILL "${left[@]}" 2>/dev/null
    fi
    sleep 0.1
  done
  return $first
}

logs=$(mktemp -d "${TMPDIR:-/tmp}/local_pod.XXXXXX")
for ((attempt = 1; ; attempt++)); do
  run "$@"
  code=$?
  if [ "$code" != 75 ] && [ "$code" -le 128 ]; then break; fi
  if [ -n "$stopping" ] || [ "$attempt" -ge "${ATTEMPTS:-10}" ]; then break; fi
  echo "exit code $code: starting all $n processes again"
done
if [ "$code" = 0 ]; then rm -rf "$logs"; else echo "exit code $code; logs in $logs"; fi
exit "$code"
