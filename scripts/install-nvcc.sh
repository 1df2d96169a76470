#!/usr/bin/env bash
# Installs nvcc 13.0 from PyPI into .nvcc/ in the crate root, where build.rs looks for it.
# For machines without the CUDA toolkit: no root, no GPU and no driver are needed, only
# python3 with pip. Building kernels also needs a C++ compiler on PATH (apt install g++).
#
# usage: scripts/install-nvcc.sh [--with-disassembler]
#   --with-disassembler   also installs cuobjdump and nvdisasm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

compiler=(
    "nvidia-cuda-nvcc==13.0.*"
    "nvidia-nvvm==13.0.*"
    "nvidia-cuda-crt==13.0.*"
    "nvidia-cuda-runtime==13.0.*"
    "nvidia-cuda-cccl==13.0.*"
)
# PyPI has these from 13.2 on; they read what older compilers wrote.
disassembler=("nvidia-cuda-cuobjdump==13.2.*" "nvidia-cuda-nvdisasm==13.2.*")

bin=.nvcc/nvidia/cu13/bin
staging=.nvcc/staging
trap 'rm -rf "$staging"' EXIT

die() { echo "install-nvcc: $*" >&2; exit 1; }

# install PACKAGE...: by way of a staging folder, so that an interrupted run leaves no half of
# a compiler where build.rs would find it. Versions are all named above, hence --no-deps.
install() {
    command -v python3 >/dev/null || die "python3 was not found (apt install python3-pip)"
    python3 -m pip --version >/dev/null 2>&1 ||
        die "python3 has no pip (apt install python3-pip, or python3 -m ensurepip)"
    mkdir -p .nvcc
    rm -rf "$staging"
    export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
    python3 -m pip install --quiet --no-deps --only-binary :all: --target "$staging" "$@"
}

case "${1-}" in
    "" | --with-disassembler) ;;
    *) die "unknown argument $1 (usage: scripts/install-nvcc.sh [--with-disassembler])" ;;
esac

if [[ -x $bin/nvcc ]]; then
    echo "nvcc is already in $bin"
else
    install "${compiler[@]}"
    rm -rf .nvcc/nvidia
    mv "$staging/nvidia" .nvcc/nvidia
    # A build without nvcc does not watch for one; this has cargo run build.rs again.
    touch build.rs
    echo "installed nvcc in $bin"
fi

if [[ "${1-}" == --with-disassembler ]]; then
    if [[ -x $bin/cuobjdump && -x $bin/nvdisasm ]]; then
        echo "cuobjdump and nvdisasm are already in $bin"
    else
        install "${disassembler[@]}"
        mv "$staging"/nvidia/cu13/bin/{cuobjdump,nvdisasm} "$bin/"
        echo "installed cuobjdump and nvdisasm in $bin"
    fi
fi

"$bin/nvcc" --version | tail -n 2 | head -n 1
