#!/usr/bin/env bash
# Trains on GPU nodes under SLURM, one process for each GPU; queued again when its time is over.
#
#   launch/gpu_slurm.sh [--dry-run] -- --config=F --workdir=DIR [flags of clip_jax.train]
#
# NODES=1 GPUS=8   nodes, and GPUS of each     TIME=24:00:00   until it is stopped and queued again
# CPUS=8           cores for each process      SBATCH="..."    more options, such as --partition=X
# PYTHON=python    of an environment that all nodes see, as they must see --workdir
#
# Two minutes before the time is over the processes get SIGTERM, save, and exit with 75. So they do
# when the job is preempted, if the cluster gives it the time. Other exit codes are final.
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

# Inside of the job JAX finds the processes by what srun tells each of them.
# When one has ended, the others get a minute: they may wait for it in vain.
train=(srun --wait=60 "${PYTHON:-python}" -m clip_jax.train "$@")

if [ -z "${SLURM_JOB_ID:-}" ] || [ -n "$dry" ]; then
  read -r -a more <<< "${SBATCH:-}"
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
  echo "stopped and saved; queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
