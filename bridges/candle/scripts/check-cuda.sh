#!/usr/bin/env bash
# Lints the crate with its feature `cuda`, without CUDA: nvcc is a stub that writes empty files, so
# that candle's kernels cost no time. Nothing that is built here can run: it has its own target
# directory.
#
# usage: check-cuda.sh [CARGO OPTIONS...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cuda=$(mktemp -d)
trap 'rm -rf "$cuda"' EXIT
mkdir "$cuda/bin" "$cuda/include"
cat >"$cuda/bin/nvcc" <<'STUB'
#!/usr/bin/env bash
# cudarc reads the version from the fourth line.
[[ $* == *--version* ]] && printf '\n\n\nCuda compilation tools, release 13.0, V13.0.88\n'
while (($#)); do
    case $1 in
        -o) : >"$2" ;;
        --output-directory) folder=$2 ;;
        *.cu) source=${1##*/} ;;
    esac
    shift
done
[[ -z ${folder-} ]] || : >"$folder/${source%.cu}.ptx"
STUB
chmod +x "$cuda/bin/nvcc"

# DOCS_RS: the core without its kernels.
export DOCS_RS=1 CUDA_HOME=$cuda CUDA_COMPUTE_CAP=90 PATH=$cuda/bin:$PATH
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/check-cuda
cargo clippy --locked --features cuda --all-targets "$@" -- -D warnings
