#!/usr/bin/env bash
# Submits one training to Slurm: one task per GPU or per node, requeued after preemption and at the time limit.
set -euo pipefail
source "$(dirname "$0")/common.sh"

usage() {
    cat <<'TEXT'
usage: NAME=... NODES=... GPUS=... TIME=... launch/slurm.sh [OPTIONS] -- ARGUMENTS

Submits `python -m ivt_jax.main ARGUMENTS --distributed` as a batch job. The repository, its environment and the workdir
must lie on a disk that all nodes share.

  --tasks_per=gpu|node   one process per GPU (the default), or one per node with all its GPUs
  --retries=N            how many times to requeue the job after exit codes 75 and 76 and lost processes (100)
  --sbatch=OPTION        another option for sbatch, as in --sbatch=--qos=high; may be repeated
  --dry_run              print the command with the batch script, and run nothing

  NAME                 the job's name; jobs of one name run one after the other, so repeating the command is safe
  NODES, GPUS          number of nodes, and of GPUs in each
  TIME                 time limit, as in 24:00:00; the step is saved two minutes before
  PARTITION, ACCOUNT   partition and account of the job (Slurm's defaults)
  PYTHON               the interpreter (.venv/bin/python)

The log is runs/logs/NAME-JOB.log; every line begins with its task's number. To stop: scancel JOB.

  NAME=cuhk NODES=2 GPUS=8 TIME=24:00:00 launch/slurm.sh -- --config=configs/cuhk.py --config.data.batch_size=64
TEXT
}

tasks_per=gpu retries=100 more=()
while (($#)); do
    case $1 in
        --dry_run | --dry-run) dry_run=true ;;
        --tasks_per=* | --tasks-per=*) tasks_per=${1#*=} ;;
        --retries=*) retries=${1#*=} ;;
        --sbatch=*) more+=("${1#*=}") ;;
        --help) usage && exit ;;
        --) shift && break ;;
        *) fail "unknown option $1; the arguments of ivt_jax.main follow after --" ;;
    esac
    shift
done
need NAME "$a_word" cuhk
need NODES "$a_number" 2
need GPUS "$a_number" 8
need TIME '[0-9]+(-[0-9]+)?(:[0-9]{2}){0,2}' 24:00:00
[[ -z ${PARTITION:-} ]] || need PARTITION "$a_word(,$a_word)*" gpu
[[ -z ${ACCOUNT:-} ]] || need ACCOUNT "$a_word" vision
[[ $tasks_per =~ ^(gpu|node)$ ]] || fail "--tasks_per must be gpu or node, not $tasks_per"
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries must be a number, not $retries"
(($#)) || fail "say what to run: launch/slurm.sh -- --config=configs/cuhk.py"
python=${PYTHON:-.venv/bin/python}
tool "$python" "run make install, or set PYTHON"
tool sbatch "run this on a login node of the cluster"

# JAX gives a Slurm task the one GPU with its number on the node, which must be visible to it: hence no binding. For one
# task per node, JAX_LOCAL_DEVICE_IDS names all GPUs.
if [[ $tasks_per == gpu ]]; then
    tasks=$GPUS devices=""
else
    tasks=1 devices="export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((GPUS - 1)))"
fi

options=(--job-name="$NAME" --nodes="$NODES" --ntasks-per-node="$tasks" --gpus-per-node="$GPUS" --time="$TIME")
[[ -z ${PARTITION:-} ]] || options+=(--partition="$PARTITION")
[[ -z ${ACCOUNT:-} ]] || options+=(--account="$ACCOUNT")
options+=(--output=runs/logs/%x-%j.log --open-mode=append) # one log over all attempts
options+=(--dependency=singleton)                          # after the jobs of this name
options+=(--requeue --signal=TERM@120)                     # to the tasks, which save their step; not to the script
options+=("${more[@]}")

# A task that ends first does not kill the others: they may still be saving.
script="#!/usr/bin/env bash
set -euo pipefail
source launch/common.sh
$devices
code=0
srun --label --gpu-bind=none --kill-on-bad-exit=0 --wait=0 launch/environment.sh gpu $(quote "$python") -m ivt_jax.main $(quote "$@") --distributed || code=\$?
if resumable \"\$code\" && ((\${SLURM_RESTART_COUNT:-0} < $retries)); then
    scontrol requeue \"\$SLURM_JOB_ID\"
fi
exit \"\$code\""

call mkdir -p runs/logs
call_with "$script" sbatch "${options[@]}"
