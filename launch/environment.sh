#!/usr/bin/env bash
# The environment that XLA, NCCL and libtpu read on each platform: in this file alone.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/environment.sh cpu|gpu|tpu [COMMAND...]

Runs the command with the environment of the platform; without a command, prints it. XLA_FLAGS and LIBTPU_INIT_ARGS
that are set already come last, and win. DEVICES is the number of CPU devices that a process pretends to have (1).
TEXT
}

variables=() xla=() libtpu=()
case ${1:-} in
    cpu)
        variables+=(JAX_PLATFORMS=cpu)                                # also where the machine has an accelerator
        xla+=(--xla_force_host_platform_device_count="${DEVICES:-1}") # devices per process
        ;;
    gpu)
        variables+=(NCCL_DEBUG="${NCCL_DEBUG:-WARN}")         # a failing collective says why
        xla+=(--xla_gpu_enable_latency_hiding_scheduler=true) # collectives overlap with what does not need them
        ;;
    tpu)
        libtpu+=(--xla_tpu_enable_data_parallel_all_reduce_opt=true)   # gradients are summed during the backward pass
        libtpu+=(--xla_tpu_data_parallel_opt_different_sized_ops=true) # ... whatever the shapes of the parameters
        ;;
    --help) usage && exit ;;
    *) echo "error: say which platform: launch/environment.sh cpu, gpu or tpu" >&2 && exit 2 ;;
esac
given=${XLA_FLAGS:-}
if [[ $given =~ ^[[:space:]]*[^[:space:]-] ]]; then # XLA reads it as the name of a file of flags
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
