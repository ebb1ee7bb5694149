#!/usr/bin/env bash
# Submits launch/gke.yaml with other values filled in.
#
#   launch/gke.sh [options] -- --config=F --workdir=/mnt/pod/RUN [flags of clip_jax.train]
#
# --name=clip-jax  --image=IMAGE                          name of the job and its container image
# --accelerator=tpu-v5-lite-podslice  --topology=4x4      node pool of each slice
# --hosts=4        hosts per slice; by default, one for every four chips
# --slices=1       number of slices
# --dry-run        prints the kubectl command and its input without running it
set -uo pipefail

name=clip-jax image='' accelerator=tpu-v5-lite-podslice topology=4x4 hosts='' slices=1 dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --hosts=*) hosts=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --dry-run) dry=1 ;;
    --) shift; break ;;
    *) echo "$1 is not an option; put training flags after --" >&2; exit 2 ;;
  esac
  shift
done
if [ -z "$image" ] || [ $# = 0 ]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
chips=$((${topology//x/*}))
if [ -z "$hosts" ]; then hosts=$(((chips + 3) / 4)); fi
if [ $((chips % hosts)) != 0 ]; then
  echo "--topology=$topology has $chips chips, which --hosts=$hosts does not divide evenly" >&2
  exit 2
fi

filled() {
  local line argument
  while IFS= read -r line; do
    case $line in
      *'- --config='*)
        for argument in "$@"; do echo "              - '${argument//\'/\'\'}'"; done ;;
      *'- --workdir='*) ;;
      *) echo "$line" ;;
    esac
  done < "$(dirname "$0")/gke.yaml" | sed \
    -e "s|^  name: clip-jax|  name: $name|" -e "s|image: IMAGE|image: $image|" \
    -e "s|gke-tpu-accelerator: .*|gke-tpu-accelerator: $accelerator|" \
    -e "s|gke-tpu-topology: .*|gke-tpu-topology: $topology|" \
    -e "s|replicas: 1 |replicas: $slices |" -e "s|completions: 4 |completions: $hosts |" \
    -e "s|parallelism: 4|parallelism: $hosts|" \
    -e "s|google.com/tpu: 4|google.com/tpu: $((chips / hosts))|"
}

if [ -n "$dry" ]; then
  echo "kubectl apply -f - <<'END'"
  filled "$@"
  echo END
else
  filled "$@" | kubectl apply -f -
fi
