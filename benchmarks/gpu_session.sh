#!/usr/bin/env bash
# What a quarter of an hour on one GPU should measure, in order of worth.
#
#     benchmarks/gpu_session.sh OUT [--rehearse]
#
# Each part has its own time limit, and writes OUT/PART.log and OUT/PART.json. A part that fails or
# runs out of time does not stop the others. OUT/summary.txt has a line for each part as it ends.
# With --rehearse the models and batches are tiny, so that a CPU runs every part in some minutes.
#
# The GPU's machine needs: pip install 'jax[cuda13]' open_clip_torch, and this package.
set -uo pipefail

if [[ $# -lt 1 || $1 == -* || ( $# -gt 1 && $2 != --rehearse ) ]]; then
  sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p'
  [[ ${1-} == --help ]] && exit 0
  exit 2
fi
out=$1 rehearse=${2-}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2

# part NAME SECONDS COMMAND…
part() {
  local name=$1 limit=$2 began=$SECONDS status
  shift 2
  timeout --kill-after=10 "$limit" "$@" "--json=$out/$name.json" > "$out/$name.log" 2>&1
  status=$?
  case $status in
    0) said=done ;;
    124 | 137) said="out of time after $limit s" ;;
    *) said="failed with status $status" ;;
  esac
  echo "$name: $said, $((SECONDS - began)) s" | tee -a "$out/summary.txt"
}

step=(python -m benchmarks.step)
loss=(python -m benchmarks.loss)
: > "$out/summary.txt"
if [[ $rehearse ]]; then
  short=(--steps=1 --rounds=1 --dtype=bfloat16)
  part vit_b16_step 600 "${step[@]}" --model=ViT-B/32 --batch-size=2 --side-by-side \
    --scan-blocks "${short[@]}"
  part vit_b32_step 200 "${step[@]}" --model=ViT-tiny --batch-size=4 --no-side-by-side "${short[@]}"
  part rn50_step 200 "${step[@]}" --model=RN-tiny --batch-size=4 --no-side-by-side "${short[@]}"
  part attention 200 "${step[@]}" --model=ViT-tiny --batch-size=4 --no-side-by-side \
    --attention=auto,xla "${short[@]}"
  part loss 200 "${loss[@]}" --rows=64,128 --dim=16 --repeats=1 --siglip
  part loss_65536 200 "${loss[@]}" --rows=256 --dim=16 --repeats=1 --siglip --dense-limit=16
  part loss_262144 200 "${loss[@]}" --rows=512 --dim=16 --repeats=1 --dense-limit=0
  part largest_batch 100 "${step[@]}" --model=ViT-tiny --batch-size=4 --largest-batch
  part out_of_time 2 "${step[@]}" --model=ViT-tiny --batch-size=4 --no-side-by-side "${short[@]}"
  exit
fi

# The batches are those of one GPU in a run: for fewer images the host's launches would be measured.
full=(--dtype=bfloat16 --side-by-side --torch-compile --steps=5 --rounds=4)
part vit_b16_step 180 "${step[@]}" --model=ViT-B/16 --batch-size=256 "${full[@]}"
part vit_b32_step 130 "${step[@]}" --model=ViT-B/32 --batch-size=512 "${full[@]}"
part rn50_step 180 "${step[@]}" --model=RN50 --batch-size=256 "${full[@]}"
part attention 90 "${step[@]}" --model=ViT-B/16 --batch-size=256 --dtype=bfloat16 \
  --attention=cudnn,xla --no-side-by-side --steps=5 --rounds=4
part loss 90 "${loss[@]}" --rows=8192,16384,32768 --repeats=5 --siglip --dense-limit=4
part loss_65536 70 "${loss[@]}" --rows=65536 --repeats=3 --siglip --dense-limit=16
part loss_262144 60 "${loss[@]}" --rows=131072,262144 --repeats=2 --dense-limit=0
part largest_batch 100 "${step[@]}" --model=ViT-B/32 --batch-size=4096 --dtype=bfloat16 \
  --remat=full --scan-blocks --largest-batch
