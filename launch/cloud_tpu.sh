#!/usr/bin/env bash
# Runs one training on every worker of a Cloud TPU: clone, install, train.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: TPU_NAME=... ZONE=... PROJECT=... launch/cloud_tpu.sh [--dry-run] -- ARGUMENTS

Runs `python -m ivt_jax.main ARGUMENTS --distributed` on every worker of a TPU, over ssh, in three steps:
the repository at a revision, its environment with JAX for TPU, the training. The TPU must exist.

  --dry-run   print each step as it would run, and run nothing

  TPU_NAME, ZONE, PROJECT   the TPU, its zone, its Google Cloud project
  REPOSITORY                where the workers clone from (this clone's remote "origin")
  REVISION                  what they check out (this clone's HEAD, which must be pushed)
  REMOTE_PYTHON             the workers' interpreter, Python 3.11 or later (python3)

The workdir must be a folder that all workers share, such as a mounted Filestore. The same command resumes the run.

  TPU_NAME=pod ZONE=us-east5-a PROJECT=mine launch/cloud_tpu.sh -- --config=configs/cuhk.py --workdir=/mnt/runs/cuhk
TEXT
}

fail() {
    echo "error: $1" >&2
    exit 2
}

# A word as a shell reads it back: bare where that is safe, else in quotes.
quote() {
    local word words=()
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
        words+=("$word")
    done
    echo "${words[*]}"
}

dry_run=false
while (($#)); do
    case $1 in
        --dry-run) dry_run=true ;;
        --help) usage && exit ;;
        --) shift && break ;;
        *) fail "unknown option $1; the arguments of ivt_jax.main follow after --" ;;
    esac
    shift
done
for name in TPU_NAME ZONE PROJECT; do
    [[ ${!name:-} =~ ^[a-z0-9:.-]+$ ]] || fail "set $name (now: '${!name:-}'); launch/cloud_tpu.sh --help tells more"
done
(($#)) || fail "say what to run: launch/cloud_tpu.sh -- --config=configs/cuhk.py --workdir=/mnt/runs/cuhk"

here=$(dirname "$0")/..
repository=${REPOSITORY:-$(git -C "$here" remote get-url origin 2>/dev/null)} || fail "this clone has no remote: set REPOSITORY"
revision=${REVISION:-$(git -C "$here" rev-parse HEAD 2>/dev/null)} || fail "no commit to check out: set REVISION"
$dry_run || command -v gcloud >/dev/null || fail "gcloud not found: install the Google Cloud CLI"

on_all_workers() {
    local run=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --project="$PROJECT" --worker=all --command="$2")
    echo "# $1"
    if $dry_run; then quote "${run[@]}"; else "${run[@]}"; fi
}

on_all_workers "1/3 the repository at $revision" \
    "test -d ivt_jax || git clone --quiet $(quote "$repository") ivt_jax; cd ivt_jax && git fetch --quiet && git checkout --quiet --detach $(quote "$revision")"
on_all_workers "2/3 the environment" \
    "cd ivt_jax && make install PYTHON=$(quote "${REMOTE_PYTHON:-python3}") && .venv/bin/pip install --quiet --requirement=requirements.txt 'jax[tpu]'"
on_all_workers "3/3 the training" \
    "cd ivt_jax && .venv/bin/python -m ivt_jax.main $(quote "$@") --distributed"
