#!/usr/bin/env bash
# On a machine with a GPU, in a quarter of an hour, without a network:
#   bash benchmarks/gpu.sh prove   the kernels: exact, no waits, no races; their speed (4 minutes)
#   bash benchmarks/gpu.sh train   the published protocol on Zhanglab, what fits (8 minutes)
# Without an argument it does both. Each prints one table at its end, and leaves a few small files
# in $OUT (runs/gpu). What benchmarks/pack_for_gpu.sh made ready is taken from .gpu: wheels, compiled
# kernels, data. The second takes the rates that the first left in $WORK, or measures them. QUICK=1
# tries all of it out, without a GPU too.
set -uo pipefail
cd "$(dirname "$0")/.."
stage=${1:-}
case $stage in
  prove | train) ;;
  "") bash benchmarks/gpu.sh prove && bash benchmarks/gpu.sh train; exit ;;
  *) sed -n '2,8p' benchmarks/gpu.sh; exit 2 ;;
esac
python=${PYTHON:-python3}
out=${OUT:-runs/gpu}
work=${WORK:-${TMPDIR:-/tmp}/anatpaste-aug-gpu}
mkdir -p "$out" "$work/site"
work=$(cd "$work" && pwd)
log=$out/$stage.log
failed=0
: >"$log"
export PYTHONUNBUFFERED=1 MPLBACKEND=Agg PYTHONPATH=$PWD:$work/site${PYTHONPATH:+:$PYTHONPATH}

if [ -e .gpu ] && [ ! -e "$work/unpacked" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$work/site" \
    .gpu/*.whl 2>&1 | tee -a "$log"
  for packed in .gpu/*.tar*; do tar -xf "$packed" -C "$work"; done
  # Triton keeps absolute paths.
  find "$work/triton" -name '__grp__*' -exec sed -i "s,\"/[^\"]*/triton/,\"$work/triton/,g" {} +
  touch "$work/unpacked"
fi
[ -e "$work/triton" ] && export TRITON_CACHE_DIR=$work/triton
[ -e "$work/shared" ] && export ANATPASTE_AUG_SHARED=$work/shared
export TORCHINDUCTOR_CACHE_DIR=$work/inductor
shared=${ANATPASTE_AUG_SHARED:-../shared}
data=${DATA:-$shared/data/zhanglab224}

step() { # NAME SECONDS COMMAND...: run it, keep its output, go on whatever happens
  local name=$1 limit=$2 left=$((all - SECONDS)) begin=$SECONDS status
  shift 2
  [ "$left" -gt 0 ] || left=1
  [ "$limit" -le "$left" ] || limit=$left
  echo "== $name" | tee -a "$log"
  timeout -s INT -k 10 "$limit" "$@" 2>&1 | tee -a "$log"
  status=${PIPESTATUS[0]}
  [ "$status" = 0 ] || failed=1
  [ "$status" = 124 ] && status="stopped after $limit s"
  echo "| step: $name | $((SECONDS - begin)) s, status $status |" >>"$log"
  [ "$status" = 0 ]
}
card() { # STEP SECONDS [OPTION...]
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$python" -m benchmarks.card "$name" --json "$out/$stage.json" "$@"
}
end() {
  echo
  grep '^| ' "$log"
  exit "$failed"
}

pytest=("$python" -m pytest tests/test_kernels.py -q -rs -p no:cacheprovider -W default)
if [ -n "${QUICK:-}" ]; then
  LIMIT=${LIMIT:-900} data=$work/phantoms
  [ -e "$data" ] || "$python" -c "from pathlib import Path
from examples.pretrain_gde.phantoms import write_phantoms
write_phantoms(Path('$data'), 64)"
  command -v nvidia-smi >/dev/null || export TRITON_INTERPRET=1 OMP_NUM_THREADS=1
  tests=(-m "not slow and not compiles" -k "strides or waits")
else
  export TRITON_INTERPRET=0
  tests=(-m "not compiles")
fi
rates=("$python" -m benchmarks.card rates --data "$data" --cache "$work/cache")

if [ "$stage" = prove ]; then
  all=${LIMIT:-330} # seconds
  card forms 150 || end # nothing below means anything then
  if [ -z "${QUICK:-}" ]; then # compiles the training step meanwhile
    timeout 200 "${rates[@]}" --json "$work/warm.json" >"$work/warm.log" 2>&1 &
  fi
  step tests 200 "${pytest[@]}" "${tests[@]}"
  echo "| kernel tests | $(grep -E '[0-9]+ (passed|failed|error)' "$log" | tail -n 1) |" >>"$log"
  wait
  card repeats 60
  card speed 90
  step rates 120 "${rates[@]}" --json "$out/prove.json"
  cp "$out/prove.json" "$work/"
  if timeout 40 compute-sanitizer "$python" -c 'import torch; torch.zeros(1, device="cuda")' \
    >/dev/null 2>&1; then
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step memcheck 70 compute-sanitizer --tool memcheck \
      --error-exitcode 9 "${pytest[@]}" -k "labels or boxes or shapes or strides"
  else
    echo "| memcheck | compute-sanitizer is not here, or of no use here |" >>"$log"
  fi
  end
fi

all=${LIMIT:-570}
[ -e "$work/prove.json" ] || step rates 120 "${rates[@]}" --json "$work/prove.json"
read -ra plan < <("$python" -m benchmarks.card plan --json "$work/prove.json" \
  --seconds "${SECONDS_TO_TRAIN:-360}")
[ "${plan[0]:-}" = --epochs ] || plan=(--epochs 60 --no-compile)
[ -n "${QUICK:-}" ] && plan=(--epochs 1 --size 32 --batch 4 --updates 2)
echo "| to train | ${plan[*]} |" >>"$log"
rm -rf "$work/runs"
step train 560 "$python" -m examples.pretrain_gde train --preset paper --data "$data" \
  --cache "$work/cache" --out "$work/runs" --seeds "${SEED:-7}" "${plan[@]}" --quiet
for name in metrics.json scores.csv report.html; do
  cp "$work/runs/anatpaste/seed${SEED:-7}/$name" "$out/" || failed=1
done
"$python" -m benchmarks.card trained --json "$out/metrics.json" | tee -a "$log"
end
