#!/usr/bin/env bash
# Trains on Kubernetes (GKE) as a JobSet: it fills in gpu.yaml or tpu.yaml, and applies it.
set -euo pipefail

usage() {
  cat <<'EOF'
Trains on GKE as a JobSet, with GPUs or on a TPU slice.

  launch/gke/run.sh gpu --name=NAME --image=IMAGE --nodes=4 --workdir=gs://BUCKET/RUN \
    [--accelerator=nvidia-h100-80gb] [--gpus=8] -- --config=configs/cc12m.py …
  launch/gke/run.sh tpu --name=NAME --image=IMAGE --topology=4x4 --workdir=gs://BUCKET/RUN \
    [--accelerator=tpu-v5-lite-podslice] [--chips=4] -- --config=configs/cc12m.py …

The flags after -- are for cyclip_jax.main. --gpus and --chips count those of one node; a TPU slice
has as many nodes as its topology needs. Other options are:

  --spot                      uses spot nodes
  --namespace=default
  --service_account=default   the service account, which has to be able to write to the workdir
  --restarts=10               how often the run is started again after a crash; a run that was
                              stopped, or whose node was taken, comes back without being counted
  --grace=300                 seconds that a pod has to save in when it is told to end; spot nodes
                              get some 25
  --dry-run                   prints the command with its YAML, and runs nothing

The cluster needs JobSet (jobset.x-k8s.io/v1alpha2) and, for GPUs, NVIDIA's driver. These commands
build the image (with cuda or tpu), show the logs, and end the run: it saves, and its name is free
again.

  docker build --file=launch/gke/Dockerfile --build-arg=ACCELERATOR=cuda --tag=IMAGE .
  kubectl logs --follow --prefix --selector=jobset.sigs.k8s.io/jobset-name=NAME
  kubectl delete jobset NAME

On a cluster that xpk made for TPUs, use this command in place of this file:

  xpk workload create --cluster=CLUSTER --workload=NAME --tpu-type=v5litepod-16 \
    --docker-image=IMAGE --max-restarts=10 --command='python -m cyclip_jax.main --distributed \
    --workdir=gs://BUCKET/RUN --config=configs/cc12m.py'
EOF
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Writes a word as a line of a YAML list.
listed() {
  local word=$1
  [[ $word != *$'\n'* ]] || fail "a flag has a line break; remove it from $word"
  word=${word//\\/\\\\}
  word=${word//\"/\\\"}
  printf '                    - "%s"\n' "$word"
}

check_count() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "--$1=$2 is not a whole number above 0"
}

# Prints how many hosts a slice has: its chips divided by those of a host.
hosts() {
  local chips=1 side
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
    fail "tpu needs --topology=AxB or AxBxC, such as 4x4${topology:+, not $topology}"
  for side in ${topology//x/ }; do
    chips=$((chips * side))
  done
  ((chips % gpus == 0)) || fail "the $chips chips of --topology=$topology do not" \
    "divide into nodes of $gpus chips; change --chips"
  echo $((chips / gpus))
}

check() {
  # Pods are NAME-worker-0-INDEX, which has to be a host's name.
  [[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || fail "$kind needs --name=NAME of at most 40" \
    "lower-case letters, digits and dashes${name:+, not $name}"
  local option flag config=
  for option in image namespace service_account accelerator; do
    [[ ${!option} =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] ||
      fail "$kind needs --$option${!option:+, and it cannot be ${!option}}"
  done
  [[ $workdir == gs://?* ]] || fail "$kind needs --workdir=gs://BUCKET/RUN, which all pods see"
  for option in gpus restarts grace nodes; do
    check_count "$option" "${!option}"
  done
  for flag in ${flags[@]+"${flags[@]}"}; do
    [[ $flag != --config=* ]] || config=yes
    [[ $flag != --workdir* ]] ||
      fail "--workdir stands before --, and the training's flags stand after it"
  done
  [[ $config ]] ||
    fail "$kind needs the training's flags after --, such as -- --config=configs/cc12m.py"
}

fill_in() {
  local text pair spot_selector="# any nodes"
  text=$(<"$(dirname "$0")/$kind.yaml")
  [[ ! $spot ]] || spot_selector='cloud.google.com/gke-spot: "true"'
  for pair in "NAME=$name" "NAMESPACE=$namespace" "IMAGE=$image" "NODES=$nodes" "GPUS=$gpus" \
    "CHIPS=$gpus" "ACCELERATOR=$accelerator" "TOPOLOGY=\"$topology\"" "RESTARTS=$restarts" \
    "GRACE=$grace" "SERVICE_ACCOUNT=$service_account" "SPOT=$spot_selector"; do
    text=${text//"\${${pair%%=*}}"/"${pair#*=}"}
  done
  # Last, so that nothing in a flag is filled in.
  local flag
  while IFS= read -r line; do
    if [[ $line == *"\${FLAGS}" ]]; then
      listed "--workdir=$workdir"
      for flag in "${flags[@]}"; do
        listed "$flag"
      done
    else
      printf '%s\n' "$line"
    fi
  done <<<"$text"
}

kind=${1---help}
shift || :
case $kind in
  gpu) accelerator=nvidia-h100-80gb gpus=8 ;;
  tpu) accelerator=tpu-v5-lite-podslice gpus=4 ;;
  -h | --help)
    usage
    exit
    ;;
  *) fail "$kind is neither gpu nor tpu; see launch/gke/run.sh --help" ;;
esac
name='' image='' nodes='' topology='' workdir='' spot='' dry_run=''
namespace=default service_account=default restarts=10 grace=300
flags=()
while (($#)); do
  case $1 in
    --name=* | --image=* | --nodes=* | --topology=* | --workdir=* | --accelerator=* | --gpus=* | \
      --namespace=* | --service_account=* | --restarts=* | --grace=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --chips=*) gpus=${1#*=} ;;
    --spot) spot=yes ;;
    --dry-run) dry_run=yes ;;
    -h | --help)
      usage
      exit
      ;;
    --)
      shift
      flags=("$@")
      break
      ;;
    *) fail "unknown option $1; see launch/gke/run.sh --help" ;;
  esac
  shift
done
if [[ $kind == tpu ]]; then
  [[ ! $nodes ]] ||
    fail "tpu takes no --nodes, because --topology and --chips tell how many there are"
  check_count chips "$gpus"
  nodes=$(hosts)
elif [[ ! $nodes ]]; then
  fail "gpu needs --nodes=COUNT"
fi
check
yaml=$(fill_in)
if [[ $dry_run ]]; then
  printf "kubectl apply --filename=- <<'YAML'\n%s\nYAML\n" "$yaml"
else
  kubectl apply --filename=- <<<"$yaml"
fi
