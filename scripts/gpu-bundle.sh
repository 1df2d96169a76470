#!/usr/bin/env bash
# Collects what there is to run on a GPU in gpu-bundle/: test, benchmark and example
# executables and a run.sh. The folder can be copied to a machine that has an NVIDIA driver but
# neither Rust nor a CUDA toolkit (the overhead benchmark needs cuBLASLt and nvrtc there). So can
# gpu-bundle.tar.xz, which unpacks to it, and has the machine code of all executables once.
#
# usage: scripts/gpu-bundle.sh [NAME...]
#   NAME   takes only these: `overhead` is whatever has this name, `tests/gpu` the tests that
#          share a GPU, `tests/gpu_serial` those that run one at a time, `tests/lib` the unit tests
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bundle=gpu-bundle
max_mib=40 # of the archive

die() { echo "gpu-bundle: $*" >&2; exit 1; }
command -v python3 >/dev/null || die "python3 was not found"
command -v strip >/dev/null || die "strip was not found (apt install binutils)"
command -v xz >/dev/null || die "xz was not found (apt install xz-utils)"

# executables KIND...: reads cargo's messages, prints "folder/name path" for each executable of
# the kinds. The paths have a hash in them, the names do not.
executables() {
    python3 -c '
import json, sys
folders = {"lib": "tests/lib", "test": "tests/", "bench": "benches/", "example": "examples/"}
for message in map(json.loads, sys.stdin):
    kind = message.get("target", {}).get("kind", [None])[0]
    if message.get("executable") and kind in sys.argv[1:]:
        name = "" if kind == "lib" else message["target"]["name"]
        print(folders[kind] + name, message["executable"])
' "$@"
}

export LORA_KERNELS_REQUIRE_NVCC=1
messages=--message-format=json-render-diagnostics
built=$(
    cargo test --release --features peft --lib --tests --no-run $messages | executables lib test
    cargo bench --features peft --benches --no-run $messages | executables bench
    cargo build --release --features peft --examples $messages | executables example
)

rm -rf "$bundle"
mkdir -p "$bundle"
wanted=("$@")
while read -r name path; do
    if ((${#wanted[@]} == 0)) || [[ " ${wanted[*]} " == *" $name "* ]] ||
        [[ " ${wanted[*]} " == *" ${name#*/} "* ]]; then
        mkdir -p "$bundle/${name%/*}"
        strip -o "$bundle/$name" "$path"
    fi
done <<<"$built"
for name in "${wanted[@]}"; do
    compgen -G "$bundle/$name" >/dev/null || compgen -G "$bundle/*/$name" >/dev/null ||
        die "there is no test, benchmark or example $name"
done

mkdir "$bundle/fixtures"
cp -r tests/fixtures/peft "$bundle/fixtures"

# Results name the commit that the executables were built from.
commit=$(git rev-parse --short HEAD)
git diff --quiet HEAD || commit+=-dirty
echo "$commit" >"$bundle/commit"

cat >"$bundle/run.sh" <<'RUN'
#!/usr/bin/env bash
# usage: run.sh tests [ARG...]            every test executable: lib, cpu, gpu and gpu_serial
#        run.sh test|bench|example NAME [ARG...]
# Tests that need a GPU are marked `ignored`; they run here unless ARG says otherwise. One test:
#        run.sh test gpu sanitize::hopper_f16 --exact
# and under compute-sanitizer:
#        compute-sanitizer tests/gpu sanitize::hopper_f16 --exact --ignored
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() { sed -n '2,7s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
export LORA_KERNELS_FIXTURES=$here/fixtures
: "${LORA_KERNELS_COMMIT=$(cat "$here/commit")}"
export LORA_KERNELS_COMMIT

# cuBLASLt and nvrtc, from a toolkit or from Python packages.
shopt -s nullglob
packages=$(python3 -c 'import nvidia; print(*nvidia.__path__, sep="\n")' 2>/dev/null)
for lib in /usr/local/cuda/lib64 /usr/local/cuda-*/lib64 /opt/cuda/lib64 \
    ${packages:+$(find $packages -maxdepth 2 -name lib)} \
    /usr/lib*/python3*/{site,dist}-packages/nvidia/*/lib \
    /usr/local/lib/python3*/{site,dist}-packages/nvidia/*/lib \
    /opt/*/lib/python3*/site-packages/nvidia/*/lib; do
    found=("$lib"/lib{cublasLt,nvrtc}.so*)
    ((${#found[@]})) && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$lib
done
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH-}

passed=0
failed=()
# run FOLDER/NAME ARG...
run() {
    local name=$1
    shift
    echo "== $name $*"
    [[ $name == tests/cpu ]] && set -- "${skipped[@]}" "$@"
    if "$here/$name" "$@"; then passed=$((passed + 1)); else failed+=("$name"); fi
}

# Tests that need the source tree.
skipped=(--skip imports:: --skip calibration:: --skip hopper_sass::)
ignored=--include-ignored
[[ " $* " == *"ignored "* ]] && ignored=
kind=${1-}
case $kind in
    tests) shift 1 ;;
    test | bench | example) (($# >= 2)) || usage; name=$2; shift 2 ;;
    *) usage ;;
esac
case $kind in
    tests) for test in "$here"/tests/*; do run "${test#"$here/"}" $ignored "$@"; done ;;
    test) run "tests/$name" $ignored "$@" ;;
    # As cargo does: without --bench, benchmarks of some harnesses only test themselves.
    bench) run "benches/$name" --bench "$@" ;;
    example) run "examples/$name" "$@" ;;
esac

echo "run.sh: $passed passed, ${#failed[@]} failed${failed[*]:+: ${failed[*]}}"
((passed > 0 && ${#failed[@]} == 0))
RUN
chmod +x "$bundle/run.sh"

(cd "$bundle" && find . -type f -printf '%10s  %P\n' | sort -k 2)
# The dictionary reaches back over all executables.
tar -cf - "$bundle" | xz --lzma2=preset=3,dict=512MiB >"$bundle.tar.xz"
bytes=$(stat -c %s "$bundle.tar.xz")
echo "$bundle.tar.xz: $((bytes >> 10)) KiB"
((bytes <= max_mib << 20)) || die "more than $max_mib MiB: name what to take, see the usage"
