#!/usr/bin/env bash
# Pack into .gpu, under 60 MiB, what an offline machine with a GPU lacks, for benchmarks/gpu.sh:
#   bash benchmarks/pack_for_gpu.sh [FOLDER OF ../shared...]
# That is wheels, kernels compiled for sm_90, and data. PYTHON needs the versions of that machine.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
shared=${ANATPASTE_AUG_SHARED:-../shared}
folders=("$@")
[ $# -gt 0 ] || folders=(golden data/{zhanglab224,montgomery256,zhanglab_fullres})
"$python" -c 'import platform, torch, triton
print(f"for Python {platform.python_version()}, torch {torch.__version__}, Triton {triton.__version__}")'
rm -rf .gpu
mkdir .gpu
"$python" -m pip download -q --no-deps --only-binary=:all: -d .gpu kornia kornia_rs pydicom
tar -C "$shared" --transform 's,^,shared/,' -cf .gpu/shared.tar "${folders[@]}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
TRITON_INTERPRET=0 TRITON_STORE_BINARY_ONLY=1 TRITON_CACHE_DIR=$work/triton \
  "$python" -m benchmarks.pretend >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
tail -n 2 "$work/log"
tar -C "$work" -czf .gpu/triton.tar.gz triton
du -h .gpu/*
[ "$(du -sm .gpu | cut -f1)" -lt 60 ] || { echo "more than 60 MiB: name fewer folders"; exit 1; }
