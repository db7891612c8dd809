#!/usr/bin/env bash
# On a machine with a GPU, without a network: are the Triton kernels exact there, does the batch
# synchronize, do threads race, how fast is it, and where does the time go. Everything is written to
# one folder.
#   bash benchmarks/gpu.sh [FOLDER] [DATA]     DATA: a data set for the training step's rate
# QUICK=1 tries the script out, without a GPU too.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
data=${2:-}
mkdir -p "$out"
python=${PYTHON:-python3}
failed=0
tests="slow or not slow"
[ -n "${QUICK:-}" ] && tests="not slow"
step() { # NAME COMMAND...: run it, keep its output, go on whatever happens
  local name=$1; shift
  echo "== $name"
  "$@" 2>&1 | tee "$out/$name.log" || { echo "$name failed"; failed=1; }
}
step versions "$python" -m torch.utils.collect_env
# The kernels on the device: all dtypes, sizes, strides, hard masks, golden files and, where they
# are, all radiographs of ../shared/data.
step kernels "$python" -m pytest tests/test_kernels.py -q -rs -m "$tests"
step synchronization "$python" -m pytest tests/test_batch.py -q -rs -k cuda
step exactness "$python" -m pytest tests/test_batch.py -q -m "$tests" \
  -k "golden or compile or radiographs"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" -m pytest tests/test_kernels.py -q -k "golden or hard or boxes or labels or alone"
  done
else
  echo "compute-sanitizer is not here: no memcheck, no racecheck"
fi
# Batches of 1 to 1,024 and sizes of 128 to 1,024.
step speed "$python" -m benchmarks.batch --out "$out" ${QUICK:+--quick}
step cost "$python" -m benchmarks gpu-cost --out "$out" ${QUICK:+--quick}
if [ -n "$data" ]; then
  step training "$python" -m examples.pretrain_gde benchmark --data "$data" --preset paper
fi
exit $failed
