#!/usr/bin/env bash
# Runs one training on N processes of this machine, as a cluster would.
set -euo pipefail
source "$(dirname "$0")/common.sh"

usage() {
    cat <<'TEXT'
usage: launch/local.sh --processes=N [OPTIONS] -- ARGUMENTS

Runs `python -m ivt_jax.main ARGUMENTS` on N processes that form one run, on this machine's CPU.

  --processes=N            number of processes
  --devices_per_process=K  simulated CPU devices per process (1)
  --logs=DIR               folder for the logs of the processes (runs/logs); the first is also shown
  --dry_run                print each command, and run nothing

Paths are relative to the repository. The environment variable PYTHON names the interpreter (.venv/bin/python).
Ctrl-C stops all processes, which save their step first; a second Ctrl-C kills them. If one fails, all are stopped and
its exit code is returned. The same command resumes.

  launch/local.sh --processes=2 -- --config=configs/synth.py --workdir=runs/two
TEXT
}

processes=0 devices=1 logs=runs/logs
while (($#)); do
    case $1 in
        --dry_run | --dry-run) dry_run=true ;;
        --processes=*) processes=${1#*=} ;;
        --devices_per_process=*) devices=${1#*=} ;;
        --logs=*) logs=${1#*=} ;;
        --help) usage && exit ;;
        --) shift && break ;;
        *) fail "unknown option $1; the arguments of ivt_jax.main follow after --" ;;
    esac
    shift
done
[[ $processes =~ ^$a_number$ ]] || fail "say how many processes: --processes=2"
[[ $devices =~ ^$a_number$ ]] || fail "--devices_per_process must be a number, not $devices"
[[ $logs ]] || fail "--logs must name a folder"
(($#)) || fail "say what to run: launch/local.sh --processes=$processes -- --config=configs/synth.py"
python=${PYTHON:-.venv/bin/python}
tool "$python" "run make install, or set PYTHON"

call mkdir -p "$logs"
port=$((20000 + RANDOM % 12000)) # below the ports that Linux assigns to clients
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done

pids=()
start() {
    local log=$logs/process-$1.log
    local run=(env DEVICES="$devices" launch/environment.sh cpu "$python" -m ivt_jax.main "${@:2}"
        --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$1")
    if $dry_run; then
        echo "$(quote "${run[@]}") >$(quote "$log") 2>&1 &"
    else
        : >"$log" # `tail` may start before the process writes
        "${run[@]}" >"$log" 2>&1 &
        pids+=($!)
    fi
}

# Sends TERM, on which a process saves its step; after a minute KILL.
stop() {
    kill -TERM "${pids[@]}" 2>/dev/null || true
    for _ in {1..300}; do
        kill -0 "${pids[@]}" 2>/dev/null || return 0
        sleep 0.2
    done
    kill -KILL "${pids[@]}" 2>/dev/null || true
}

# shellcheck disable=SC2329 # called by the trap
interrupt() {
    local code=0
    trap 'kill -KILL "${pids[@]}" 2>/dev/null || true' INT TERM
    echo "stopping all processes" >&2
    stop
    wait "${pids[0]}" || code=$?
    ((code == 75)) || code=130
    exit "$code"
}

interrupted=false
trap 'interrupted=true' INT TERM # until all started processes are in pids
for ((i = 0; i < processes; i++)); do start "$i" "$@"; done
if $dry_run; then
    call wait
    exit
fi
trap interrupt INT TERM
$interrupted && interrupt
tail -n +1 -s 0.2 -f --pid="${pids[0]}" "$logs/process-0.log" &
shown=$!

code=0
running=("${pids[@]}")
while ((${#running[@]})); do
    sleep 0.2
    for i in "${!running[@]}"; do
        kill -0 "${running[i]}" 2>/dev/null && continue
        unset "running[i]"
        ended=0
        wait "${pids[i]}" || ended=$?
        ((ended && code == 0)) || continue
        code=$ended failed=$i
        ((code == 75)) || stop # after preemption all save the same step and exit
    done
done
wait "$shown" || true
((code == 0)) && exit
echo "error: process $failed ended with exit code $code; its log: $logs/process-$failed.log" >&2
resumable "$code" && echo "the same command resumes the run" >&2
exit "$code"
