#!/usr/bin/env bash
# Trains on GPU nodes under SLURM, one process per GPU, and requeues the job at its time limit.
#
#   launch/gpu_slurm.sh [--dry-run] -- --config=F --workdir=DIR [flags of clip_jax.train]
#
# NODES=1 GPUS=8   nodes, and GPUs per node    TIME=24:00:00   time limit, after which it requeues
# CPUS=8           cores per process           SBATCH="..."    more options, such as
#                  --partition=X, with quotes around those that contain spaces
# PYTHON=python    of an environment that all nodes can access, like --workdir
#
# Two minutes before the time limit, the processes receive SIGTERM, save a checkpoint and exit with
# code 75, which requeues the job. The same happens on preemption, if the cluster leaves enough
# time. Any other exit code ends the job.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -uo pipefail

dry=
if [ "${1:-}" = --dry-run ]; then dry=1; shift; fi
if [ "${1:-}" != -- ] || [ $# -lt 2 ]; then
  sed -n '2,/^#SBATCH/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
shift

# Inside the job, JAX finds the other processes through the environment variables that srun sets.
# When one process has ended, the others get a minute, because they may be waiting for it in vain.
# Each line of the log starts with the number of the process that wrote it.
train=(srun --label --wait=60 "${PYTHON:-python}" -m clip_jax.train "$@")

if [ -z "${SLURM_JOB_ID:-}" ] || [ -n "$dry" ]; then
  # Splits as a shell would, but expands nothing.
  more=()
  while IFS= read -r -d '' word; do more+=("$word"); done \
    < <(if [ -n "${SBATCH:-}" ]; then xargs printf '%s\0' <<< "$SBATCH"; fi)
  submit=(sbatch "--nodes=${NODES:-1}" "--ntasks-per-node=${GPUS:-8}"
          "--gpus-per-node=${GPUS:-8}" "--cpus-per-task=${CPUS:-8}"
          "--time=${TIME:-24:00:00}" ${more[@]+"${more[@]}"} "$0" -- "$@")
  if [ -n "$dry" ]; then
    printf '%q ' "${submit[@]}" | sed 's/ $/\n/'
    printf '%q ' "${train[@]}" | sed 's/ $/\n/'
    echo "scontrol requeue \$SLURM_JOB_ID  # after exit code 75"
    exit 0
  fi
  exec "${submit[@]}"
fi

"${train[@]}"
code=$?
if [ "$code" = 75 ]; then
  echo "stopped after saving a checkpoint; requeueing"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
