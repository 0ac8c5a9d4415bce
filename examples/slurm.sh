#!/usr/bin/env bash
# One run of dinv shared by the tasks of a Slurm array. Every task has the same command; --join makes them take different
# units, and a task that is requeued goes on where it was. RUN must lie on a file system that all nodes see and whose
# flock reaches across them: `dinv doctor RUN` says so. Not tried on a cluster: two processes on one machine were.
#
#   sbatch --array=0-3 examples/slurm.sh photos /shared/runs/photos --generator models/sd --resolution 256 --guidance-scales 3
#SBATCH --job-name=dinv
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --gpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=dinv-%A-%a.log
set -euo pipefail

data=$1 run=$2
shift 2
# A signal, two minutes before the time is up, lets the batch in hand end and be committed.
dinv run "$data" --out "$run" --join --threads "${SLURM_CPUS_PER_TASK:-1}" "$@" &
trap 'kill -TERM "$!"' TERM
wait "$!" || wait "$!"
