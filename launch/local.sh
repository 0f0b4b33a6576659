#!/usr/bin/env bash
# Runs one training on N processes of this machine: what a cluster does, without the cluster.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/local.sh --processes=N [--devices_per_process=K] [--logs=DIR] -- ARGUMENTS

Runs `python -m ivt_jax.main ARGUMENTS` on N processes that form one run, on this machine's CPU.

  --processes=N            number of processes
  --devices_per_process=K  CPU devices that each process pretends to have (1)
  --logs=DIR               where each process writes its log (runs/logs); the first one's is shown here too

Paths are relative to the repository. The environment variable PYTHON names the interpreter (.venv/bin/python).
Ctrl-C stops all processes; so does the failure of one, whose exit code is then returned.

  launch/local.sh --processes=2 -- --config=configs/synth.py --workdir=runs/two
TEXT
}

fail() {
    echo "error: $1" >&2
    exit 2
}

processes=0 devices=1 logs=runs/logs
while (($#)); do
    case $1 in
        --processes=*) processes=${1#*=} ;;
        --devices_per_process=*) devices=${1#*=} ;;
        --logs=*) logs=${1#*=} ;;
        --help) usage && exit ;;
        --) shift && break ;;
        *) fail "unknown option $1; the arguments of ivt_jax.main follow after --" ;;
    esac
    shift
done
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "say how many processes: --processes=2"
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices_per_process must be a number, not $devices"
(($#)) || fail "say what to run: launch/local.sh --processes=$processes -- --config=configs/synth.py"

cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || fail "$python not found: run make install, or set PYTHON"
mkdir -p "$logs"

port=$((20000 + RANDOM % 12000)) # below the ports that Linux hands out by itself
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

pids=()
start() {
    "$python" -m ivt_jax.main "${@:2}" --coordinator="127.0.0.1:$port" --num_processes="$processes" \
        --process_id="$1" >"$logs/process-$1.log" 2>&1 &
    pids+=($!)
}

# TERM first; KILL is for those that do not heed it, or wait for a neighbour which is gone.
stop() {
    kill -TERM "${pids[@]}" 2>/dev/null || true
    for _ in {1..50}; do
        kill -0 "${pids[@]}" 2>/dev/null || return 0
        sleep 0.2
    done
    kill -KILL "${pids[@]}" 2>/dev/null || true
}
trap 'echo "stopping all processes" >&2; stop; exit 130' INT TERM

for ((i = 0; i < processes; i++)); do start "$i" "$@"; done
tail -n +1 -s 0.2 -f --pid="${pids[0]}" "$logs/process-0.log" &
shown=$!

code=0
running=("${pids[@]}")
while ((${#running[@]} && code == 0)); do
    sleep 0.2
    for i in "${!running[@]}"; do
        kill -0 "${running[i]}" 2>/dev/null && continue
        unset "running[i]"
        wait "${pids[i]}" && continue
        code=$?
        stop
        wait "$shown" || true
        echo "error: process $i ended with exit code $code; its log: $logs/process-$i.log" >&2
        break
    done
done
wait "$shown" || true
exit "$code"
