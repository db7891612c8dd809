#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, without a network: does the batch synchronise, is it exact there,
# how fast is it, and where does the time go. Everything is written to one folder.
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
step synchronisation "$python" -m pytest tests/test_batch.py -q -rs -k cuda
step exactness "$python" -m pytest tests/test_batch.py -q -m "$tests" -k "golden or compile"
step speed "$python" -m benchmarks.batch --out "$out" ${QUICK:+--quick}
if [ -n "$data" ]; then
  step training "$python" -m examples.pretrain_gde benchmark --data "$data" --preset paper
fi
exit $failed
