#!/usr/bin/env bash
# Trains on a Cloud TPU: creates the TPU, installs this checkout on all its hosts, starts training,
# follows the first host's log, resumes after preemptions, and deletes the TPU after a success.
#
#   launch/tpu_pod.sh [options] -- --config=F --workdir=/mnt/pod/RUN [flags of clip_jax.train]
#   launch/tpu_pod.sh --down --name=N --zone=Z
#   launch/tpu_pod.sh --logs --name=N --zone=Z
#
# --name=N --zone=Z [--project=P]   the TPU
# --type=v5litepod-16               its type and size
# --runtime=VERSION                 its software version; by default, the one for --type
# --spot                            a spot TPU, which is cheaper but may be preempted at any time
# --queued                          requests a queued resource and waits for it
# --nfs=SERVER:/SHARE               mounted at /mnt/pod on every host, as all must share --workdir
# --adopt                           uses an existing TPU that this script did not create
# --keep                            leaves the TPU running after a success, too
# --delete                          deletes the TPU after a failure, too
# --down                            deletes the TPU and does nothing else
# --logs                            prints the end of every host's log and does nothing else
# --dry-run                         prints the commands of an uneventful run without running them
#
# The script only deletes a TPU that it created, which it recognises by the label clip_jax_launch.
# On the hosts it writes to ~/clip_jax_pod only. After a failure the TPU keeps running and costing
# money, so that you can look at it; a message says how to delete it.
#
# Training continues if this script ends or loses its connection; run the same command again to
# reattach. The script exits with the exit code of the training.
#
# ATTEMPTS=100  maximum number of starts
# FAILURES=3    failures in a row, not counting preemptions, after which it gives up
# POLL=30       seconds between two checks of the TPU
set -uo pipefail

name='' zone='' project='' type='' runtime='' nfs='' spot='' queued='' adopt='' keep='' delete=''
down='' logs='' dry=''
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
    --adopt) adopt=1 ;;
    --keep) keep=1 ;;
    --delete) delete=1 ;;
    --down) down=1 ;;
    --logs) logs=1 ;;
    --dry-run) dry=1 ;;
    --) shift; break ;;
    *) echo "$1 is not an option; put training flags after --" >&2; exit 2 ;;
  esac
  shift
done
if [ -z "$name" ] || [ -z "$zone" ] ||
    { [ -z "$down$logs" ] && { [ -z "$type" ] || [ $# = 0 ]; }; }; then
  sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
if [ -n "$keep" ] && [ -n "$delete" ]; then
  echo "--keep and --delete contradict each other" >&2
  exit 2
fi
for word in "$name" "$zone" "$project" "$type" "$runtime"; do
  case $word in
    *[!a-z0-9.:-]*) echo "$word is not a name that Google Cloud accepts" >&2; exit 2 ;;
  esac
done
case $nfs in
  *[!A-Za-z0-9._:/-]*) echo "--nfs=$nfs is not of the form SERVER:/SHARE" >&2; exit 2 ;;
esac
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

# Whether the existing TPU has the label that `create` sets. Any doubt means no.
owned() {
  local label
  if [ -n "$dry" ]; then return 0; fi
  label=$(tpus tpu-vm describe "$name" '--format=value(labels.clip_jax_launch)' 2>/dev/null)
  if [ "$label" = tpu_pod ]; then return 0; fi
  # A suspended queued resource has no TPU any more, but still the description of it.
  label=$(tpus queued-resources describe "$name" \
    '--format=value(tpu.nodeSpec[0].node.labels.clip_jax_launch)' 2>/dev/null)
  [ "$label" = tpu_pod ]
}

create() {
  if [ -n "$queued" ]; then
    tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$runtime" --labels=clip_jax_launch=tpu_pod ${spot:+--spot}
  else
    tpus tpu-vm create "$name" "--accelerator-type=$type" "--version=$runtime" \
      --labels=clip_jax_launch=tpu_pod ${spot:+--spot}
  fi
}

delete() {
  if ! owned; then
    echo "$name was not created by this script, so it is not deleted" >&2
    return 1
  fi
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
      READY)
        if [ -n "$adopt" ] || owned; then return 0; fi
        echo "$name exists and was not created by this script. Choose another --name, or use the TPU" \
          "with --adopt; it is then left running at the end." >&2
        return 2 ;;
      MISSING)
        new=1 created=$((created + 1))
        if [ $created -gt "${ATTEMPTS:-100}" ]; then echo "no TPU available" >&2; return 1; fi
        create
        if [ -n "$dry" ]; then return 0; fi ;;
      GONE)
        echo "the TPU is gone; requesting a new one" >&2
        delete || return 1 ;;
    esac
    if [ "$now" != GONE ]; then sleep "${POLL:-30}"; fi
  done
}

# Installs this checkout in ~/clip_jax_pod of every host.
install() {
  local folder=clip_jax_pod parts=(clip_jax configs launch setup.py pyproject.toml README.md LICENSE)
  local mine=$folder/created_by_tpu_pod archive=clip_jax.tar.gz temporary mount=true
  if [ -n "$nfs" ]; then
    mount="sudo apt-get install -y -q nfs-common && sudo mkdir -p /mnt/pod && { mountpoint -q"
    mount="$mount /mnt/pod || sudo mount -t nfs $nfs /mnt/pod; }"
  fi
  if [ -n "$dry" ]; then
    temporary=/tmp/clip_jax_pod
    echo "tar -czf $temporary/$archive ${parts[*]}"
  else
    temporary=$(mktemp -d) || return 1
    tar -czf "$temporary/$archive" "${parts[@]}" || return 1
  fi
  on all "if [ -e $folder ] && [ ! -f $mine ]; then echo \"\$(hostname): ~/$folder exists and is not \
from launch/tpu_pod.sh; rename it\" >&2; exit 1; fi; mkdir -p $folder && touch $mine" &&
    tpus tpu-vm scp "$temporary/$archive" "$name:$folder/" --worker=all &&
    on all "cd $folder && rm -rf source && mkdir source && tar -xzf $archive -C source && $mount" &&
    on all "cd $folder && python3 -m pip install --user -q uv && python3 -m uv venv -q \
--allow-existing --python 3.12 env && python3 -m uv pip install -q --python env/bin/python -e \
'./source[tpu]'"
  local code=$?
  if [ -z "$dry" ]; then rm -rf "$temporary"; fi
  return $code
}

# Each host records the process id and, at the end, the exit code. Ends the process of an earlier
# start, if any: it gets a minute to save, and is recognised by its command, not by its id alone.
start() {
  local train old
  train="cd source; ../env/bin/python -m clip_jax.train $(printf '%q ' "$@"); echo \$? > ../train.code"
  old="pid=\$(cat train.pid 2> /dev/null); if grep -q clip_jax.train /proc/\$pid/cmdline 2> /dev/null; \
then kill -TERM -- -\$pid; for i in \$(seq 60); do kill -0 -- -\$pid 2> /dev/null || break; sleep 1; \
done; kill -KILL -- -\$pid 2> /dev/null; fi"
  on all "cd clip_jax_pod; $old; rm -f train.code; \
setsid bash -c $(printf %q "$train") > train.log 2>&1 < /dev/null & echo \$! > train.pid"
}

running() { on 0 "kill -0 \$(cat clip_jax_pod/train.pid)" > /dev/null 2>&1; }
follow() { on 0 "tail -n $1 -F --pid=\$(cat clip_jax_pod/train.pid) clip_jax_pod/train.log"; }
code() { on 0 "cat clip_jax_pod/train.code" 2> /dev/null | tail -n 1; }
all_logs() { on all "echo \"== \$(hostname)\"; tail -n 20 clip_jax_pod/train.log"; }

# Ends with an exit code. Deletes the TPU after a success unless --keep, after a failure if --delete.
finish() {
  if [ "$1" != 0 ]; then all_logs; fi
  if [ -n "$delete" ] || { [ "$1" = 0 ] && [ -z "$keep" ] && [ -z "$adopt" ]; }; then
    delete && exit "$1"
  fi
  echo "$name is still running and costs money. To delete it:"
  if [ -n "$adopt" ]; then
    echo "gcloud compute tpus tpu-vm delete $name ${where[*]}"
  else
    echo "launch/tpu_pod.sh --down --name=$name ${where[*]}"
  fi
  exit "$1"
}

if [ -n "$logs" ]; then
  all_logs
  exit
fi

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
get || exit $?
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
    # A mistake in the command (2) or a failed evaluator (3) would only happen again.
    0 | 2 | 3) finish "$ended" ;;
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
  get || exit $?
  if [ -n "$new" ]; then install || finish 1; fi
  start "$@"
done
