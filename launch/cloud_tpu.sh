#!/usr/bin/env bash
# Runs one training on a Cloud TPU: creates the TPU, waits, trains on all workers, collects their logs, deletes the TPU.
set -euo pipefail
source "$(dirname "$0")/common.sh"

usage() {
    cat <<'TEXT'
usage: TPU_NAME=... ZONE=... PROJECT=... ACCELERATOR_TYPE=... RUNTIME_VERSION=... SHARE=... \
           launch/cloud_tpu.sh [OPTIONS] -- ARGUMENTS
       TPU_NAME=... ZONE=... PROJECT=... launch/cloud_tpu.sh [--dry_run] logs | stop | delete

Runs `python -m ivt_jax.main ARGUMENTS --distributed` on every worker of a TPU: creates a queued resource, waits until it
is active, mounts the shared disk, clones the repository at a revision, installs, trains, collects the logs, and deletes
the TPU, also when interrupted (after saving the step). If the TPU is preempted or the training loses a process, deletes the
TPU, requests another and resumes. Uses a queued resource of this name if there is one.

  --spot, --reserved   kind of the TPU, if not on demand
  --retries=N          how many times to request another TPU (10)
  --wait=MINUTES       how long to wait for the TPU, each time (1440)
  --keep               do not delete the TPU at the end
  --existing           train on a TPU that exists; do not create or delete it
  --dry_run            print each command of a run without failures, and run nothing

  TPU_NAME, ZONE, PROJECT             the TPU (and its queued resource), its zone, its Google Cloud project
  ACCELERATOR_TYPE, RUNTIME_VERSION   as in v5litepod-16, v2-alpha-tpuv5-lite; not with --existing
  SHARE                               an NFS share, HOST:/PATH, such as a Filestore; mounted at /mnt/shared, where the
                                      workdir must be, since the TPU's own disks are deleted with it; optional with --existing
  REPOSITORY                          URL that the workers clone (this clone's remote "origin")
  REVISION                            revision that they check out (this clone's HEAD, which must be pushed)
  REMOTE_PYTHON                       the workers' interpreter, Python 3.11 or later (python3)
  LOGS                                folder for the workers' logs, 0.log, 1.log, ... (runs/logs/TPU_NAME)

The same command resumes the run. If the launcher was lost and the training still runs, it takes over. `stop` saves the
step and ends the training.
TEXT
}

keep=false existing=false kind=() retries=10 minutes=1440 verb=run
while (($#)); do
    case $1 in
        --dry_run | --dry-run) dry_run=true ;;
        --spot | --reserved) kind+=("$1") ;;
        --retries=*) retries=${1#*=} ;;
        --wait=*) minutes=${1#*=} ;;
        --keep) keep=true ;;
        --existing) existing=true ;;
        --help) usage && exit ;;
        logs | stop | delete) verb=$1 ;;
        --) shift && break ;;
        *) fail "unknown option $1; the arguments of ivt_jax.main follow after --" ;;
    esac
    shift
done
need TPU_NAME "$a_name" pod
need ZONE "$a_word" us-east5-a
need PROJECT "$a_word" my-project
if [[ $verb == run ]]; then
    $existing || need ACCELERATOR_TYPE "$a_word" v5litepod-16
    $existing || need RUNTIME_VERSION "$a_word" v2-alpha-tpuv5-lite
    $existing && [[ -z ${SHARE:-} ]] || need SHARE "$a_word:/[A-Za-z0-9_./-]*" 10.0.0.2:/runs
    ((${#kind[@]} < 2)) || fail "--spot or --reserved, not both"
    [[ $retries =~ ^[0-9]+$ ]] || fail "--retries must be a number, not $retries"
    [[ $minutes =~ ^[0-9]+$ ]] || fail "--wait must be a number of minutes, not $minutes"
    (($#)) || fail "say what to run: launch/cloud_tpu.sh -- --config=configs/cuhk.py --workdir=/mnt/shared/cuhk"
    [[ -z ${SHARE:-} || " $*" == *" --workdir=/mnt/shared/"* ]] || fail "put the workdir on the shared disk: --workdir=/mnt/shared/$TPU_NAME, after --"
    repository=${REPOSITORY:-$(git remote get-url origin 2>/dev/null)} || fail "this clone has no remote: set REPOSITORY"
    revision=${REVISION:-$(git rev-parse HEAD 2>/dev/null)} || fail "no commit to check out: set REVISION"
fi
tool gcloud "install the Google Cloud CLI"

logs=${LOGS:-runs/logs/$TPU_NAME}
where=(--zone="$ZONE" --project="$PROJECT" --quiet)
queue=(gcloud compute tpus queued-resources)
describe=("${queue[@]}" describe "$TPU_NAME" "${where[@]}" "--format=value(state.state)")

say() {
    echo "# $1"
}

# Prints the queued resource's state; empty if there is none, or the request failed.
state() {
    "${describe[@]}" 2>/dev/null || true
}

create() {
    say "the TPU"
    if $dry_run; then
        call "${describe[@]}"
    else
        case $(state) in
            "") ;;
            SUSPEND* | FAILED) delete || return ;; # of an earlier run
            *) say "$TPU_NAME has been requested already" && return ;;
        esac
    fi
    call "${queue[@]}" create "$TPU_NAME" "${where[@]}" --node-id="$TPU_NAME" \
        --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" "${kind[@]}"
}

wait_until_active() {
    local now before="" end=$((SECONDS + 60 * minutes))
    if $dry_run; then call "${describe[@]}" && return; fi
    while true; do
        now=$(state)
        [[ $now == "$before" ]] || say "$TPU_NAME: ${now:-state unknown}"
        case $now in
            ACTIVE) return ;;
            FAILED) "${queue[@]}" describe "$TPU_NAME" "${where[@]}" "--format=value(state.failedData.error.message)" ;;&
            FAILED | SUSPEND*) echo "error: the TPU $TPU_NAME is $now" >&2 && return 1 ;;
        esac
        if ((SECONDS >= end)); then
            echo "error: the TPU $TPU_NAME is not active after $minutes minutes (${now:-state unknown}); --wait waits longer" >&2
            return 1
        fi
        before=$now
        sleep "${POLL_SECONDS:-30}"
    done
}

delete() {
    say "deleting the TPU"
    call "${queue[@]}" delete "$TPU_NAME" "${where[@]}" --force
}

# In the background, since a shell handles no signal while a command runs in the foreground.
on_all_workers() {
    local run=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker=all --command="$1" "${@:2}")
    if $dry_run; then call "${run[@]}" && return; fi
    local code=0
    "${run[@]}" &
    child=$!
    wait "$child" || code=$?
    child=
    return "$code"
}

collect() {
    say "the workers' logs: $logs"
    call mkdir -p "$logs"
    on_all_workers "cat ivt_jax/runs/worker/log" --output-directory="$logs" || say "the logs could not be fetched"
}

stop() {
    say "stopping the training"
    on_all_workers "test ! -d ivt_jax || ivt_jax/launch/worker.sh stop" || say "not all workers could be reached"
}

share() {
    say "the shared disk"
    on_all_workers "mountpoint --quiet /mnt/shared || { sudo apt-get install --quiet --yes nfs-common && sudo mkdir --parents /mnt/shared && sudo mount --types nfs $SHARE /mnt/shared; }"
}

clone() {
    say "the repository at $revision"
    on_all_workers "test -d ivt_jax || git clone --quiet $(quote "$repository") ivt_jax; cd ivt_jax && git fetch --quiet && git checkout --quiet --detach $(quote "$revision")"
}

install() {
    say "the environment"
    on_all_workers "cd ivt_jax && make install PYTHON=$(quote "${REMOTE_PYTHON:-python3}") && .venv/bin/pip install --quiet --requirement=requirements.txt 'jax[tpu]'"
}

# ssh drops a connection that is silent for two minutes, and gcloud reconnects up to ten times. The training does not
# depend on the connection. If the TPU is gone, this ends within minutes.
train() {
    say "the training"
    training=true
    on_all_workers "cd ivt_jax && launch/worker.sh run $(quote "$@") --distributed" \
        -- -o ConnectTimeout=20 -o ServerAliveInterval=30 -o ServerAliveCountMax=4
}

attempt() {
    $existing || { create && wait_until_active; } || return
    [[ -z ${SHARE:-} ]] || share || return
    clone && install && train "$@"
}

# Whether another attempt may succeed after this exit code; 255 is ssh's own.
lost() {
    resumable "$1" || [[ $1 == 255 ]] || { ! $existing && [[ $(state) == SUSPEND* ]]; }
}

run() {
    local code tries
    for ((tries = 0; ; tries++)); do
        code=0
        attempt "$@" || code=$?
        if $training; then collect; fi
        training=false
        if ((code == 0)) || $dry_run; then return; fi
        if ! lost "$code"; then
            echo "error: ended with exit code $code" >&2
            return "$code"
        fi
        if ((tries == retries)); then
            echo "error: ended with exit code $code, after $retries retries; the same command resumes" >&2
            return "$code"
        fi
        say "lost, with exit code $code: retry $((tries + 1)) of $retries"
        $existing || delete
    done
}

# Runs however the script ends, and ignores further interrupts, so that no TPU is left behind.
finish() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    [[ -z $child ]] || kill "$child" 2>/dev/null || true
    if $training; then
        stop
        collect
    fi
    if ! $keep && ! $existing && ! delete; then
        echo "error: $TPU_NAME may still exist and cost money: launch/cloud_tpu.sh delete" >&2
        ((code)) || code=1
    fi
    exit "$code"
}

training=false child=
case $verb in
    logs) collect ;;
    stop) stop ;;
    delete) delete ;;
    run)
        trap finish EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        run "$@"
        ;;
esac
