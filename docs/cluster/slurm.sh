#!/bin/bash
# A run over several nodes, one process a node, each with all the GPUs of its node:
#
#   sbatch docs/cluster/slurm.sh breakout --total-steps 50000000
#
# What stands after the script goes to experiments.run. The directory below must be on a file
# system that the first node of every restart sees.
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
# A port of this job's own, below those that the kernel hands out.
port="${PORT:-$((20000 + SLURM_JOB_ID % 12000))}"

# Where python is: source /path/to/.venv/bin/activate, or module load.
srun --kill-on-bad-exit=1 bash -c 'exec python -m experiments.run "$@" --process-id "$SLURM_PROCID"' \
  run "${@:-cartpole}" --devices "$devices" --coordinator "$first:$port" \
  --num-processes "$SLURM_NNODES" --initialization-seconds 120 --out "$out" --resume

# Slurm sends SIGTERM three minutes before the time is up; the run then ends at the next chunk with
# a checkpoint taken, and goes on in the same job, queued again.
if grep -q '"interrupted": true' "$out/summary.json"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
