#!/bin/bash
# One search over the nodes of one allocation: DATA=/data/data.yaml sbatch docs/cluster/slurm.sh
# The batch script runs on the first node: it starts Ray on all nodes as job steps, and the search beside them. Two minutes before the time
# is up Slurm tells this script, the search ends as by Ctrl-C, and the job is queued again: the search goes on from there.
#SBATCH --job-name=nas-attn
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

study=${STUDY:-$HOME/studies/first}
port=$((20000 + SLURM_JOB_ID % 10000)) # of this job's own: two jobs may share a node
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$study/ray-token RAY_USAGE_STATS_ENABLED=0
mkdir -p "$study"
# The token is made before Ray starts, or Ray would make it readable for all. The home folder is shared by the nodes of a cluster.
[ -s "$RAY_AUTH_TOKEN_PATH" ] || (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Ray opens its own folder, with sockets and logs, to all: so it lies in one that is yours alone, made on each node before Ray starts. LOCAL
# is a local disk; its name must be short, for a socket's path has at most 107 characters. A folder that somebody else made is not taken.
private=${LOCAL:-/tmp}/nas-attn-$SLURM_JOB_ID
# shellcheck disable=SC2016 # the bash of each node expands it
begin='[ -d "$0" ] || mkdir -m 700 "$0"
[ ! -L "$0" ] && [ -O "$0" ] && chmod 700 "$0" || { echo "error: $0 must be a folder of yours; set LOCAL to another place." >&2; exit 1; }
until [ "$1" = head ] || ray health-check --address "$1" >/dev/null 2>&1; do sleep 2; done # the others begin once the head is there
exec "${@:2}"'
ray=(ray start --block --disable-usage-stats --num-cpus "$SLURM_CPUS_PER_TASK" --temp-dir "$private/ray")
steps=()
search=
# Only this script is told (B:), and bash runs a trap only while it waits: so all that takes long is in the background and waited for. A
# background process of a script ignores SIGINT; SIGTERM does the same to a search.
told=
trap 'told=yes; [ -z "$search" ] || kill -TERM "$search" 2>/dev/null || true' TERM INT
trap '[ ${#steps[@]} = 0 ] || kill -TERM "${steps[@]}" 2>/dev/null || true; wait' EXIT

srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" bash -c "$begin" "$private" head \
    "${ray[@]}" --head --port "$port" --include-dashboard=false &
steps+=($!)
if [ ${#nodes[@]} -gt 1 ]; then
    others=$(IFS=, && echo "${nodes[*]:1}")
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --nodelist="$others" bash -c "$begin" "$private" "${nodes[0]}:$port" \
        "${ray[@]}" --address "${nodes[0]}:$port" &
    steps+=($!)
fi
until ray health-check --address "${nodes[0]}:$port" >/dev/null 2>&1; do
    [ -z "$told" ] && kill -0 "${steps[0]}" || exit 1 # Ray did not start
    sleep 2
done

# Workers join as their nodes do, one a GPU. A driver without an autoscaler to ask loses nothing by --max-workers.
nas-attn search yolo11 --data "${DATA:?the data set YAML}" --trials 200 --out "$study" --address "${nodes[0]}:$port" --device cuda \
    --max-workers "${#nodes[@]}" --cpus-per-worker "$SLURM_CPUS_PER_TASK" --gpus-per-worker 1 &
search=$!
code=0
while kill -0 "$search" 2>/dev/null; do # a trap ends the waiting, not the search
    code=0
    wait "$search" || code=$?
done
search=
if [ -n "$told" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
