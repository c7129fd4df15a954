#!/bin/bash
# Run on several nodes: one process on each node, using all GPUs of the node.
#
#   sbatch docs/cluster/slurm.sh breakout --total-rows 50000000
#
# The arguments after the script are those of `jaxdqn run`. The run directory must be on a file
# system that the first node sees after every restart of the job.
#SBATCH --job-name=jaxdqn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
set -euo pipefail

out="${OUT:-$PWD/runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}"
devices=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-1}))
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port for this job, below the range that the kernel assigns.
port="${PORT:-$((20000 + SLURM_JOB_ID % 12000))}"

# Put jaxdqn on the path here: source /path/to/.venv/bin/activate, or module load.
srun --kill-on-bad-exit=1 bash -c 'exec jaxdqn run "$@" --process-id "$SLURM_PROCID"' \
  run "${@:-cartpole}" --devices "$devices" --coordinator "$first:$port" \
  --num-processes "$SLURM_NNODES" --initialization-seconds 120 --out "$out" --resume

# Slurm sends SIGTERM three minutes before the time limit. The run then takes a checkpoint and ends
# at the next chunk. The job is queued again and resumes from the checkpoint.
if grep -q '"interrupted": true' "$out/summary.json"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
