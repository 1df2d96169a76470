#!/usr/bin/env bash
# Builds the wheel into dist/: bridges/torch/build-wheel.sh [--out DIR]
#
# Needs Rust, python3 with venv, and nvcc (scripts/install-nvcc.sh brings one). Without nvcc, set
# DOCS_RS=1: the wheel then computes on the CPU only. maturin and zig come from PyPI; zig links
# against glibc 2.28, so that the wheel carries the tag manylinux_2_28 and runs wherever PyTorch's
# own wheels do. Nothing of CUDA is linked: the driver is loaded when a CUDA tensor comes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

out=dist
if [[ ${1-} == --out ]]; then out=$2; fi
if [[ ${DOCS_RS-} == "" ]]; then export LORA_KERNELS_REQUIRE_NVCC=1; fi

tools=${CARGO_TARGET_DIR:-target}/wheel-tools
[[ -x $tools/bin/maturin ]] || python3 -m venv "$tools"
"$tools/bin/pip" install --quiet "maturin>=1.9,<2" ziglang
python3 licenses.py
PATH=$PWD/$tools/bin:$tools/bin:$PATH maturin build --release --locked --zig \
    --compatibility manylinux_2_28 --out "$out"
