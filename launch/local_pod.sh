#!/usr/bin/env bash
# Trains in N processes on this machine, each with its own CPU devices: a pod on a laptop.
#
#   launch/local_pod.sh [--dry-run] N CONFIG [flags of clip_jax.train, including --workdir=DIR]
#
# Process 0 writes to this terminal, the others to log files; their paths are printed at the start.
# If a process asks for a restart (exit code 75, after SIGTERM) or is killed by a signal, all are
# restarted from the newest checkpoint. SIGTERM to this script is forwarded to all processes, and
# the script ends when they have saved.
#
# DEVICES=4      devices per process
# ATTEMPTS=10    maximum number of starts
# GRACE=30       seconds the other processes have to end after one has failed
# PYTHON=python  the Python to run
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

# Runs all processes once. Returns 2 if any of them did, else the exit code of the first failure.
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
  echo "exit code $code: restarting all $n processes"
done
if [ "$code" = 0 ]; then rm -rf "$logs"; else echo "exit code $code; logs in $logs"; fi
exit "$code"
