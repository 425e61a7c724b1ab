#!/bin/bash
# One search over the nodes of one allocation: sbatch docs/cluster/slurm.sh
# A job that was preempted or ran out of time is submitted again as it is: the search goes on.
#SBATCH --job-name=nas-attn
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:INT@120
#SBATCH --requeue
set -euo pipefail

study=${STUDY:-$HOME/studies/first}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$study/ray-token RAY_USAGE_STATS_ENABLED=0
mkdir -p "$study"
# The token is made before Ray starts, or Ray would make it readable for all. The home folder is shared by the nodes of a cluster.
[ -s "$RAY_AUTH_TOKEN_PATH" ] || (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun ray symmetric-run --address "$head_node:6379" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
    nas-attn search yolo11 --data "${DATA:?the data set YAML}" --trials 200 --out "$study" --address auto
