#!/usr/bin/env bash
# Sets the environment that XLA, NCCL and libtpu read on each platform.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/environment.sh cpu|gpu|tpu [COMMAND...]

Runs the command with the environment of the platform; without a command, prints it. Values that are already set of
XLA_FLAGS and LIBTPU_INIT_ARGS, and of JAX_PLATFORMS on a TPU, take precedence.
DEVICES: number of simulated CPU devices per process (1).
TEXT
}

variables=() xla=() libtpu=()
case ${1:-} in
    cpu)
        variables+=(JAX_PLATFORMS=cpu)                                # also if the machine has an accelerator
        xla+=(--xla_force_host_platform_device_count="${DEVICES:-1}") # devices per process
        ;;
    gpu)
        variables+=(NCCL_DEBUG="${NCCL_DEBUG:-WARN}")         # a failing collective logs the reason
        xla+=(--xla_gpu_enable_latency_hiding_scheduler=true) # collectives overlap with other computation
        ;;
    tpu)
        variables+=(JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}")         # without a TPU, JAX would train on the CPU
        libtpu+=(--xla_tpu_enable_data_parallel_all_reduce_opt=true)   # sums gradients during the backward pass
        libtpu+=(--xla_tpu_data_parallel_opt_different_sized_ops=true) # ... of parameters of any shape
        ;;
    --help) usage && exit ;;
    *) echo "error: say which platform: launch/environment.sh cpu, gpu or tpu" >&2 && exit 2 ;;
esac
given=${XLA_FLAGS:-}
if [[ $given =~ ^[[:space:]]*[^[:space:]-] ]]; then # XLA reads it as the name of a file with flags
    if ! [[ -f $given && -r $given ]]; then
        echo "error: XLA_FLAGS=$given: the file cannot be read; name a file of flags, or set --FLAG=VALUE" >&2
        exit 2
    fi
    given=$(tr '\n' ' ' <"$given")
fi
((${#xla[@]})) && variables+=(XLA_FLAGS="${xla[*]} $given")
((${#libtpu[@]})) && variables+=(LIBTPU_INIT_ARGS="${libtpu[*]} ${LIBTPU_INIT_ARGS:-}")
shift
(($#)) && exec env "${variables[@]}" "$@"
printf '%s\n' "${variables[@]}"
