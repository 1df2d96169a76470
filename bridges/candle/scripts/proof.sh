#!/usr/bin/env bash
# The runs that README.md compares, on a machine with a GPU, Python and what requirements.txt has:
# this crate twice, plain candle, and PEFT. Rust and a network are not needed.
#
# usage: proof.sh EXAMPLE MODEL OUT [OPTIONS...]
#   EXAMPLE  the executable of the example smollm2, built with --features cuda
#   MODEL    the folder of its --prepare, or the wheel in it with train.u16 and held_out.u16
#   OUT      where results go: *.json and logs for smollm2_proof, and the folders of the runs
#   OPTIONS  more options of the example, such as --steps 4 --device cpu
#
# DEVICE (cuda) and DTYPE (bf16) say where all runs are; PYTHON (python3) has PyTorch.
set -euo pipefail
(($# >= 3)) || { sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p}' "$0" >&2; exit 2; }

example=$1 model=$2 out=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
device=${DEVICE:-cuda} dtype=${DTYPE:-bf16}
declare -A torch_dtype=([bf16]=bfloat16 [f32]=float32)
mkdir -p "$out"

# run NAME OPTIONS...: one process, so that its peak memory is its own.
run() {
    local name=$1
    shift
    echo "== $name" >&2
    "$example" --model "$model" --device "$device" --dtype "$dtype" --out "$out/$name" \
        --json "$out/$name.json" "$@" 2>&1 | tee "$out/$name.log"
}

run ours "$@"
run again "$@" --answer 0
run plain "$@" --baseline plain
echo "== peft" >&2
"${PYTHON:-python3}" "$here/peft_proof.py" --model "$model" --run "$out/ours" --device "$device" \
    --dtype "${torch_dtype[$dtype]}" --json "$out/peft.json" 2>&1 | tee "$out/peft.log"
