#!/usr/bin/env bash
# Runs all measurements for a GPU in under ten minutes: prints tables, writes JSON to OUT.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [[ $# -eq 0 || $1 == -* ]]; then
    cat <<'TEXT'
usage: ivt_jax/benchmarks/gpu.sh OUT [FLAGS]

Measures training steps and encoders of ViT-B in bfloat16 with `python -m ivt_jax.bench`, and compares the step with
PyTorch's if PyTorch is installed. The most important measurements run first; those that do not fit into the time are
left out with a message. FLAGS such as --config.model.depth=2 apply to every `ivt_jax.bench`. TensorFlow is not needed.

Environment: PYTHON, the interpreter (python3); SECONDS_IN_ALL, the time limit (570).

  ivt_jax/benchmarks/gpu.sh runs/gpu
TEXT
    exit 2
fi
out=$1
flags=("${@:2}")
python=${PYTHON:-python3}
limit=${SECONDS_IN_ALL:-570}
mkdir -p "$out"

# measure NAME COMMAND...: runs the command in the time that is left. If it fails, the next ones still run.
failed=0
measure() {
    local name=$1 left=$((limit - SECONDS))
    shift
    printf '\n== %s, at %d s\n' "$name" "$SECONDS"
    if ((left < 10)); then
        echo "left out: no time"
        failed=1
    elif ! timeout "$left" "$@" --json="$out/$name.json" 2>&1 | tee "$out/$name.log"; then
        echo "failed or cut off, see $out/$name.log"
        failed=1
    fi
}
bench() { measure "$1" "$python" -m ivt_jax.bench --seconds=4 "${@:2}" "${flags[@]}"; }

bench recipe --pieces=train,images,texts --variants=full,release --batches=64
bench choices --pieces=train --variants=one_view,align_fast,align_off,no_reconstruction --batches=64
bench cudnn --pieces=train,images --variants=full --batches=64 --config.model.attention=cudnn
bench small_batch --pieces=train --variants=full --batches=28
bench unrolled --pieces=train --variants=full --batches=64 --config.model.unroll=True
if "$python" -c "import torch" 2>/dev/null; then
    measure beside_torch "$python" -m ivt_jax.benchmarks.torch_reference --batch=64 --views=3 --dtype=bfloat16 --compile --turns=5
else
    echo "PyTorch is not installed: no comparison with its step"
fi
bench remat --pieces=train --variants=full --batches=128 --config.model.remat=True
bench encoders --pieces=images,texts --batches=256
exit "$failed"
