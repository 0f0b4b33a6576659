#!/usr/bin/env bash
# Checks and measures a GPU in under ten minutes: prints tables, writes JSON to OUT.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [[ $# -eq 0 || $1 == -* ]]; then
    cat <<'TEXT'
usage: ivt_jax/benchmarks/gpu.sh OUT [FLAGS]

Checks arithmetic and the training step against a CPU, compares speed with PyTorch, then measures ViT-B in bfloat16. Each
step writes OUT/STEP.json and OUT/STEP.log; OUT/summary.json says which steps are done, failed, were cut off or left out.
The most important steps run first, and a step that fails does not stop the others. docs/hardware.md explains the files.

Needs JAX for CUDA, Flax, Optax, Orbax, Transformers and ml_collections; PyTorch for one step. No TensorFlow, no network.
FLAGS apply to every `python -m ivt_jax.bench`, such as --config.model.depth=2, --models=demo or --batches=8.

Environment: PYTHON, the interpreter (python3); SECONDS_IN_ALL, the time limit (570);
TORCH_FLAGS, flags of `python -m ivt_jax.benchmarks.torch_reference` in place of the script's.

  ivt_jax/benchmarks/gpu.sh runs/gpu
TEXT
    exit 2
fi
out=$1
flags=("${@:2}")
python=${PYTHON:-python3}
limit=${SECONDS_IN_ALL:-570}
read -ra torch_flags <<<"${TORCH_FLAGS:---batch=64 --views=3 --dtype=bfloat16 --compile --turns=5 --sides=jax,torch}"
least=$((limit / 30 + 1)) # seconds; a step is not started with fewer
mkdir -p "$out"

names=() states=() times=()
# note NAME STATE SECONDS: keeps what became of a step, and writes the summary of all steps so far.
note() {
    names+=("$1") states+=("$2") times+=("$3")
    local i comma=
    {
        printf '{"seconds": %d, "steps": [' "$SECONDS"
        for i in "${!names[@]}"; do
            printf '%s\n  {"name": "%s", ' "$comma" "${names[i]}"
            printf '"state": "%s", "seconds": %d}' "${states[i]}" "${times[i]}"
            comma=,
        done
        printf '\n]}\n'
    } >"$out/summary.json"
}

# measure NAME COMMAND...: runs the command. It gets half of the time that is left, or 120 seconds if that is more.
measure() {
    local name=$1 start=$SECONDS left=$((limit - SECONDS)) code=0 most
    shift
    most=$((left / 2 > 120 ? left / 2 : left < 120 ? left : 120))
    printf '\n== %s, at %d s\n' "$name" "$SECONDS"
    rm -f "$out/$name.json"
    if ((left < least)); then
        echo "left out: no time"
        note "$name" "left out: no time" 0
        return
    fi
    # Into a file, not into a pipe: processes that outlive the command would keep a pipe open.
    timeout --kill-after=5 "$most" "$@" --json="$out/$name.json" >"$out/$name.log" 2>&1 || code=$?
    cat "$out/$name.log"
    case $code in
        0) note "$name" "done" $((SECONDS - start)) ;;
        124 | 137) note "$name" "cut off" $((SECONDS - start)) ;;
        *) note "$name" "failed with exit code $code" $((SECONDS - start)) ;;
    esac
}
bench() { measure "$1" "$python" -m ivt_jax.bench --seconds=4 "${@:2}" "${flags[@]}"; }

if command -v nvidia-smi >/dev/null; then nvidia-smi >"$out/nvidia-smi.txt" || true; fi
measure canary "$python" -m ivt_jax.benchmarks.canary
measure numbers "$python" -m ivt_jax.benchmarks.numbers
if "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    measure beside_torch "$python" -m ivt_jax.benchmarks.torch_reference "${torch_flags[@]}"
else
    note beside_torch "left out: PyTorch is not installed" 0
fi
bench recipe --pieces=train --variants=full --batches=64 --kernels=10
bench cudnn --pieces=train --variants=full --batches=64 --kernels=10 --config.model.attention=cudnn
bench unrolled --pieces=train --variants=full --batches=64 --config.model.unroll=True
bench remat --pieces=train --variants=full --batches=128 --config.model.remat=True
bench encoders --pieces=images,texts --batches=256
bench small_batch --pieces=train --variants=full --batches=28
bench choices --pieces=train --variants=release,one_view,align_fast,align_off,no_reconstruction --batches=64

printf '\n== summary, at %d s; %s\n' "$SECONDS" "$out/summary.json"
failed=0
for i in "${!names[@]}"; do
    printf '%-14s %4d s  %s\n' "${names[i]}" "${times[i]}" "${states[i]}"
    if [[ ${states[i]} != "done" ]]; then failed=1; fi
done
if [[ ${states[0]} == failed* ]]; then
    echo "The canary failed: read $out/canary.log before any other figure."
fi
exit "$failed"
