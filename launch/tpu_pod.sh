#!/usr/bin/env bash
# Trains on a Cloud TPU: creates the TPU unless it exists, installs this checkout on all its hosts,
# starts training, follows the first host's log, resumes after preemptions and deletes the TPU.
#
#   launch/tpu_pod.sh [options] -- --config=F --workdir=/mnt/pod/RUN [flags of clip_jax.train]
#   launch/tpu_pod.sh --down --name=N --zone=Z
#
# --name=N --zone=Z [--project=P]   the TPU
# --type=v5litepod-16               its type and size
# --runtime=VERSION                 its software version; by default, the one for --type
# --spot                            a spot TPU, which is cheaper but may be preempted at any time
# --queued                          requests a queued resource and waits for it
# --nfs=SERVER:/SHARE               mounted at /mnt/pod on every host, as all must share --workdir
# --keep                            leaves the TPU running at the end
# --down                            deletes the TPU and does nothing else
# --dry-run                         prints the commands of an uneventful run without running them
#
# Training continues if this script ends or loses its connection; run the same command again to
# reattach. The script exits with the exit code of the training.
#
# ATTEMPTS=100  maximum number of starts
# FAILURES=3    failures in a row, not counting preemptions, after which it gives up
# POLL=30       seconds between two checks of the TPU
set -uo pipefail

name='' zone='' project='' type='' runtime='' nfs='' spot='' queued='' keep='' down='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --nfs=*) nfs=${1#*=} ;;
    --spot) spot=1 ;;
    --queued) queued=1 ;;
    --keep) keep=1 ;;
    --down) down=1 ;;
    --dry-run) dry=1 ;;
    --) shift; break ;;
    *) echo "$1 is not an option; put training flags after --" >&2; exit 2 ;;
  esac
  shift
done
if [ -z "$name" ] || [ -z "$zone" ] || { [ -z "$down" ] && { [ -z "$type" ] || [ $# = 0 ]; }; }; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
if [ -z "$runtime" ]; then
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
fi
cd "$(dirname "$0")/.." || exit 1

where=("--zone=$zone")
[ -n "$project" ] && where+=("--project=$project")

tpus() {
  if [ -n "$dry" ]; then
    # A query prints nothing to stdout, so the caller concludes that the TPU does not exist yet.
    printf '%q ' gcloud compute tpus "$@" "${where[@]}" | sed 's/ $/\n/' >&3
  else
    gcloud compute tpus "$@" "${where[@]}"
  fi
}
exec 3>&1
on() { tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2"; }

# Prints READY, MISSING (does not exist), GONE (exists but is unusable), or a state to wait out.
state() {
  local said
  if [ -n "$queued" ]; then
    said=$(tpus queued-resources describe "$name" '--format=value(state.state)' 2>/dev/null)
  else
    said=$(tpus tpu-vm describe "$name" '--format=value(state)' 2>/dev/null)
  fi
  case $said in
    READY | ACTIVE) echo READY ;;
    '') echo MISSING ;;
    PREEMPTED | TERMINATED | STOPPED | FAILED | SUSPENDED) echo GONE ;;
    *) echo "$said" ;;
  esac
}

create() {
  if [ -n "$queued" ]; then
    tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$runtime" ${spot:+--spot}
  else
    tpus tpu-vm create "$name" "--accelerator-type=$type" "--version=$runtime" ${spot:+--spot}
  fi
}

delete() {
  if [ -n "$queued" ]; then
    tpus queued-resources delete "$name" --force --quiet
  else
    tpus tpu-vm delete "$name" --quiet
  fi
}

# Waits until the TPU is ready, creating it if necessary; in that case, sets `new`.
get() {
  local now created=0
  new=
  while :; do
    now=$(state)
    case $now in
      READY) return 0 ;;
      MISSING)
        new=1 created=$((created + 1))
        if [ $created -gt "${ATTEMPTS:-100}" ]; then echo "no TPU available" >&2; return 1; fi
        create
        if [ -n "$dry" ]; then return 0; fi ;;
      GONE) echo "the TPU is gone; requesting a new one" >&2; delete ;;
    esac
    if [ "$now" != GONE ]; then sleep "${POLL:-30}"; fi
  done
}

install() {
  local archive=clip_jax.tar.gz mount=true
  if [ -n "$nfs" ]; then
    mount="sudo apt-get install -y -q nfs-common && sudo mkdir -p /mnt/pod && { mountpoint -q"
    mount="$mount /mnt/pod || sudo mount -t nfs $nfs /mnt/pod; }"
  fi
  if [ -n "$dry" ]; then
    echo "tar -czf /tmp/$archive clip_jax configs launch setup.py pyproject.toml README.md LICENSE"
  else
    tar -czf "/tmp/$archive" clip_jax configs launch setup.py pyproject.toml README.md LICENSE
  fi
  tpus tpu-vm scp "/tmp/$archive" "$name:" --worker=all &&
    on all "rm -rf clip_jax && mkdir clip_jax && tar -xzf $archive -C clip_jax && $mount" &&
    on all "python3 -m pip install --user -q uv && python3 -m uv venv -q --allow-existing --python \
3.12 env && python3 -m uv pip install -q --python env/bin/python -e './clip_jax[tpu]'"
}

# Each host records the process id and, at the end, the exit code. Kills the process of an earlier
# start, if any.
start() {
  local train
  train="cd clip_jax; ../env/bin/python -m clip_jax.train $(printf '%q ' "$@"); echo \$? > ../train.code"
  on all "[ ! -f train.pid ] || kill -KILL -- -\$(cat train.pid) 2> /dev/null; rm -f train.code; \
setsid bash -c $(printf %q "$train") > train.log 2>&1 < /dev/null & echo \$! > train.pid"
}

running() { on 0 "kill -0 \$(cat train.pid)" > /dev/null 2>&1; }
follow() { on 0 "tail -n $1 -F --pid=\$(cat train.pid) train.log"; }
code() { on 0 "cat train.code" 2> /dev/null | tail -n 1; }

finish() {
  if [ -z "$keep" ]; then delete; else echo "$name is still running; to delete it, run" \
    "launch/tpu_pod.sh --down --name=$name ${where[*]}"; fi
  exit "$1"
}

if [ -n "$down" ]; then
  # The TPU may have been created directly or by a queued resource.
  if [ -n "$dry" ] || tpus queued-resources describe "$name" > /dev/null 2>&1; then
    queued=1 delete
  else
    delete
  fi
  exit
fi

failures=0
get || exit 1
if [ -n "$new" ] || ! running || [ -n "$dry" ]; then
  install || finish 1
  start "$@"
fi
lines=+1
for ((attempt = 1; ; attempt++)); do
  follow $lines
  lines=+1
  ended=$(code)
  if [ -n "$dry" ]; then finish 0; fi
  case $ended in
    0 | 2) finish "$ended" ;;
    75) failures=0; echo "stopped after saving a checkpoint; resuming" ;;
    '')
      if [ "$(state)" = READY ] && running; then
        echo "lost the connection; reconnecting"
        lines=20
        sleep "${POLL:-30}"
        continue
      fi
      echo "lost the TPU; resuming" ;;
    *)
      failures=$((failures + 1))
      echo "exit code $ended"
      if [ $failures -ge "${FAILURES:-3}" ]; then finish "$ended"; fi ;;
  esac
  if [ "$attempt" -ge "${ATTEMPTS:-100}" ]; then finish "${ended:-1}"; fi
  get || exit 1
  if [ -n "$new" ]; then install || finish 1; fi
  start "$@"
done
