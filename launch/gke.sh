#!/usr/bin/env bash
# Submits launch/gke.yaml with other values filled in.
#
#   launch/gke.sh [options] -- --config=F --workdir=/mnt/pod/RUN [flags of clip_jax.train]
#
# --name=clip-jax  --image=IMAGE                          name of the job and its container image
# --accelerator=tpu-v5-lite-podslice  --topology=4x4      node pool of each slice
# --hosts=4        hosts per slice; by default, one for every four chips
# --slices=1       number of slices
# --spot           on spot nodes, which are cheaper but may be preempted at any time
# --claim=clip-jax name of the volume claim that is mounted at /mnt/pod, or instead of it
# --nfs=SERVER:/SHARE
# --secret=NAME    a Secret whose entries become environment variables, such as WANDB_API_KEY or HF_TOKEN
# --cpu=16  --memory=64Gi    requested for each host
# --dry-run        prints the kubectl command and its input without running it
set -uo pipefail

name=clip-jax image='' accelerator=tpu-v5-lite-podslice topology=4x4 hosts='' slices=1 dry=''
spot='' claim=clip-jax nfs='' secret='' cpu=16 memory=64Gi
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --hosts=*) hosts=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --spot) spot=1 ;;
    --claim=*) claim=${1#*=} ;;
    --nfs=*) nfs=${1#*=} ;;
    --secret=*) secret=${1#*=} ;;
    --cpu=*) cpu=${1#*=} ;;
    --memory=*) memory=${1#*=} ;;
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

# Ends with exit code 2 unless a value has the form that an extended regular expression describes.
check() {
  if ! [[ $2 =~ ^($3)$ ]]; then echo "--$1=$2 is not $4" >&2; exit 2; fi
}
label='[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?'
check name "$name" "$label" "a name of lower-case letters, digits and dashes"
check claim "$claim" "$label" "the name of a volume claim"
check secret "$secret" "($label)?" "the name of a Secret"
check image "$image" '[A-Za-z0-9][A-Za-z0-9._/:@-]*' "the name of an image"
check accelerator "$accelerator" 'tpu-[a-z0-9-]+' "an accelerator of GKE, such as tpu-v5-lite-podslice"
check nfs "$nfs" '([A-Za-z0-9.-]+:/[A-Za-z0-9._/-]*)?' "of the form SERVER:/SHARE"
check slices "$slices" '[1-9][0-9]{0,3}' "a number of slices"
check hosts "$hosts" '([1-9][0-9]{0,4})?' "a number of hosts"
check cpu "$cpu" '[1-9][0-9]*m?' "a number of CPUs"
check memory "$memory" '[1-9][0-9]*[KMGT]i?' "an amount of memory, such as 64Gi"
case $accelerator in
  tpu-v5-lite-* | tpu-v6e-*)
    check topology "$topology" '1x1|2x2|2x4|4x4|4x8|8x8|8x16|16x16' \
      "a topology of $accelerator: 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16" ;;
  tpu-v4-* | tpu-v5p-*)
    check topology "$topology" '2x2x[124]|2x4x4|([48]|12|16|20|24)(x([48]|12|16|20|24)){2}' \
      "a topology of $accelerator: 2x2x1, 2x2x2, 2x2x4, 2x4x4, or three multiples of 4" ;;
  *) check topology "$topology" '[1-9][0-9]?(x[1-9][0-9]?){1,2}' "a topology, such as 4x4" ;;
esac
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
      *'gke-tpu-topology:'*)
        echo "$line"
        if [ -n "$spot" ]; then
          echo '              cloud.google.com/gke-spot: "true"'
          echo '            tolerations:'
          echo '            - {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}'
        fi ;;
      *'image: IMAGE'*)
        echo "$line"
        if [ -n "$secret" ]; then
          echo '              envFrom:'
          echo "              - secretRef: {name: $secret}"
        fi ;;
      *'persistentVolumeClaim:'*)
        if [ -n "$nfs" ]; then echo "              nfs: {server: ${nfs%%:*}, path: ${nfs#*:}}"
        else echo "$line"; fi ;;
      *'claimName:'*) if [ -z "$nfs" ]; then echo "                claimName: $claim"; fi ;;
      *) echo "$line" ;;
    esac
  done < "$(dirname "$0")/gke.yaml" | sed \
    -e "s|^  name: clip-jax|  name: $name|" -e "s|image: IMAGE|image: $image|" \
    -e "s|gke-tpu-accelerator: .*|gke-tpu-accelerator: $accelerator|" \
    -e "s|gke-tpu-topology: .*|gke-tpu-topology: $topology|" \
    -e "s|replicas: 1 |replicas: $slices |" -e "s|completions: 4 |completions: $hosts |" \
    -e "s|parallelism: 4|parallelism: $hosts|" -e "s|cpu: 16|cpu: $cpu|" \
    -e "s|memory: 64Gi|memory: $memory|" -e "s|google.com/tpu: 4|google.com/tpu: $((chips / hosts))|"
}

if [ -n "$dry" ]; then
  echo "kubectl apply -f - <<'END'"
  filled "$@"
  echo END
else
  filled "$@" | kubectl apply -f -
fi
