#!/usr/bin/env bash
# Runs a training on a worker of a Cloud TPU that outlives the connection of launch/cloud_tpu.sh, which starts it.
set -euo pipefail
source "$(dirname "$0")/common.sh"

usage() {
    cat <<'TEXT'
usage: launch/worker.sh run ARGUMENTS | stop

  run    starts `python -m ivt_jax.main ARGUMENTS` unless a training runs here already, shows its log (runs/worker/log)
         until it ends, and returns its exit code; after a lost connection, the same command shows it again
  stop   SIGTERM: the training saves its step and ends; SIGKILL after STOP_SECONDS (120)
TEXT
}

state=runs/worker

# The training holds a lock while it lives. Its number alone may be another process's after a reboot, and its command
# line reads as empty for a moment at each exec.
alive() {
    ! flock --nonblock "$state/running" true
}

# Held from checking whether a training runs until the number of a new one is written, because gcloud may connect twice
# and a stop may follow at once.
lock() {
    mkdir -p "$state"
    exec 9>"$state/lock"
    flock 9
}
unlock() {
    exec 9>&-
}

# Runs the command "$@" in a session of its own, so that a hangup of the connection does not reach it. Needs the lock.
start() {
    rm -f "$state/pid" "$state/code"
    # shellcheck disable=SC2016 # expanded by that shell
    setsid bash -c 'exec 8>"$1/running"; flock 8
        "${@:2}" >>"$1/log" 2>&1 9>&- & echo $! >"$1/pid"
        exec 8>&- 9>&-; wait $!; echo $? >"$1/code"' \
        worker "$state" "$@" </dev/null >/dev/null 2>&1 &
    until [[ -s $state/pid ]]; do sleep 0.1; done
}

follow() {
    tail --lines="$1" --follow --sleep-interval=0.5 --pid="$(cat "$state/pid")" "$state/log"
    for _ in {1..50}; do
        [[ -s $state/code ]] && return "$(cat "$state/code")"
        sleep 0.1
    done
    return 137 # its watcher has ended too: the machine is shutting down
}

case ${1:-} in
    run)
        lock
        touch "$state/log"
        if alive; then
            unlock
            echo "a training runs here already; its log follows" >&2
            follow 20
            exit
        fi
        seen=$(wc -l <"$state/log")
        start launch/environment.sh tpu "${PYTHON:-.venv/bin/python}" -m ivt_jax.main "${@:2}"
        unlock
        follow "+$((seen + 1))"
        ;;
    stop)
        lock
        alive || exit 0
        unlock
        kill -TERM "$(cat "$state/pid")" 2>/dev/null || exit 0 # it has just ended
        timeout "${STOP_SECONDS:-120}" tail --follow --pid="$(cat "$state/pid")" /dev/null && exit
        kill -KILL "$(cat "$state/pid")" 2>/dev/null || true
        ;;
    --help) usage ;;
    *) fail "say run ARGUMENTS or stop; see launch/worker.sh --help" ;;
esac
