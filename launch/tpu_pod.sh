#!/usr/bin/env bash
# Trains on a TPU slice through gcloud: it creates, sets up, runs, watches, stops and deletes.
set -euo pipefail

usage() {
  cat <<'EOF'
Trains on a slice of Cloud TPUs, on demand or spot, through gcloud.

  launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE [--project=PROJECT] [--dry-run] …

  create --type=v5litepod-16 [--spot] [--runtime=VERSION]
      asks for a queued resource NAME with one node NAME, and waits until it is there
  setup --ref=REF | --sync
      brings the code to every worker, and installs what launch/requirements-tpu.lock names. The
      code is a commit (--ref; the tree must have no changes), or the tree as it is without what git
      ignores (--sync). It travels as one tar through `tpu-vm scp`, because rsync would need each
      worker's address. The tar has the history, so that config.json tells the commit.
  run --workdir=gs://BUCKET/RUN [--restarts=1000] [--keep …] -- --config=configs/cc12m.py …
      starts the training on every worker under launch/supervise.py, and returns. The flags after --
      are for cyclip_jax.main. Logs go to WORKDIR/logs/worker-N.log every minute and at the end.
  run --keep --type=TYPE [--spot] [--runtime=VERSION] --ref=REF | --sync
      stays in the foreground until the run has finished. It creates the slice if it is missing,
      sets it up, and starts the run. If the slice is taken (spot), is stopped or is lost, it
      deletes the slice and creates it again, and the run goes on from its newest checkpoint. It
      looks every --poll=60 seconds. You may interrupt it: the same command then watches the run
      that is going on.
  logs [--worker=0] [--workdir=gs://…]
      shows the log of a worker as it grows; with --workdir it shows the copy there, for which no
      slice is needed
  status [--workdir=gs://…]
      shows the states of queued resource and node, and the last line of the run's metrics
  stop [--wait=300]
      sends SIGTERM to the supervisors, so that the run saves and ends, and waits for that at most
      this many seconds
  delete [--yes]
      asks, and then deletes node and queued resource

--dry-run prints each command that would be run, one on each line, and runs none. It cannot know the
states that would be looked up. Before the first ssh to several workers, run
`ssh-add ~/.ssh/google_compute_engine`.
EOF
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Prints words so that a shell reads them as they are.
quote() {
  local word separator='' apostrophe="'" escaped="'\\''"
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      printf '%s%s' "$separator" "$word"
    else
      printf "%s'%s'" "$separator" "${word//$apostrophe/$escaped}"
    fi
    separator=' '
  done
}

# Runs a command, or, for a dry run, prints it.
execute() {
  if [[ $dry_run ]]; then
    printf '%s\n' "$(quote "$@")"
  else
    "$@"
  fi
}

say() {
  if [[ $dry_run ]]; then
    printf '# %s\n' "$*"
  else
    printf '%s %s\n' "$(date +%H:%M:%S)" "$*"
  fi
}

on_workers() {
  execute gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all "--command=$1"
}

create() {
  local tier=()
  [[ ! $spot ]] || tier=(--spot)
  execute gcloud compute tpus queued-resources create "$name" "${place[@]}" \
    "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=${runtime:-$(runtime_of "$type")}" ${tier[@]+"${tier[@]}"}
}

runtime_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# Prints what a gcloud describe prints: a state, NOT_FOUND, or UNKNOWN if gcloud itself failed.
describe() {
  local error
  if error=$("$@" 2>&1 >&3); then
    return
  elif [[ $error == *NOT_FOUND* ]]; then
    echo NOT_FOUND >&3
  else
    printf '%s\n' "$error" >&2
    echo UNKNOWN >&3
  fi
} 3>&1

resource_state=(--format='value(state.state)')
node_state=(--format='value(state)')

# Prints ACTIVE if the slice can be used, TAKEN if it cannot be any more, else what gcloud says.
slice_state() {
  local state node
  state=$(describe gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    "${resource_state[@]}")
  if [[ $state == ACTIVE ]]; then
    node=$(describe gcloud compute tpus tpu-vm describe "$name" "${place[@]}" "${node_state[@]}")
    [[ $node == READY ]] || state=$node
    [[ $node != NOT_FOUND ]] || state=TAKEN
  fi
  case $state in
    SUSPENDING | SUSPENDED | FAILED | PREEMPTED | TERMINATED | STOPPED) echo TAKEN ;;
    *) echo "$state" ;;
  esac
}

await_slice() {
  local state last=
  if [[ $dry_run ]]; then
    show_states
    return
  fi
  while state=$(slice_state) && [[ $state != ACTIVE ]]; do
    [[ $state != TAKEN ]] || fail "$name failed or was taken; run launch/tpu_pod.sh status"
    [[ $state == "$last" ]] || say "$name is $state"
    last=$state
    sleep "$poll"
  done
  say "$name is there"
}

show_states() {
  say "queued resource and node:"
  execute gcloud compute tpus queued-resources describe "$name" "${place[@]}" "${resource_state[@]}"
  execute gcloud compute tpus tpu-vm describe "$name" "${place[@]}" "${node_state[@]}"
}

check_code() {
  [[ $ref || $sync ]] || fail "$command needs --ref=REF (a commit) or --sync (the tree as it is)"
  [[ ! $ref || ! $sync ]] || fail "$command takes --ref or --sync, not both"
  [[ $ref ]] || return 0
  git -C "$root" rev-parse --quiet --verify "$ref^{commit}" >/dev/null ||
    fail "$root has no commit $ref"
  [[ -z $(git -C "$root" status --porcelain) ]] ||
    fail "$root has changes that $ref does not hold; commit them, or use --sync"
}

# Brings the code to every worker as one tar, unpacks it, and installs its environment.
setup() {
  local files="git ls-files -z --cached --others --exclude-standard | xargs -0 ls -d 2>/dev/null"
  local copy="tar -cf - -T - | tar -xf - -C"
  execute mkdir -p "$staging" &&
    execute rm -rf "$staging/cyclip_jax" &&
    execute git clone --quiet --no-checkout "$root" "$staging/cyclip_jax" || return
  if [[ $ref ]]; then
    execute git -C "$staging/cyclip_jax" checkout --quiet --detach \
      "$(git -C "$root" rev-parse "$ref^{commit}")" || return
  else
    execute bash -c "cd $(quote "$root") && $files | $copy $(quote "$staging/cyclip_jax")" &&
      execute git -C "$staging/cyclip_jax" reset --quiet || return
  fi
  execute tar -czf "$staging/code.tar.gz" -C "$staging" cyclip_jax &&
    execute gcloud compute tpus tpu-vm scp "$staging/code.tar.gz" "$name:" "${place[@]}" \
      --worker=all &&
    on_workers "$unpack"
}

worker=cyclip_jax/launch/tpu_worker.sh
unpack="if [ -e $worker ]; then bash $worker idle; fi && rm -rf cyclip_jax"
unpack+=" && tar -xzf code.tar.gz && bash $worker install"

start() {
  on_workers "bash $worker start $(quote "$workdir" "$restarts" "${flags[@]}")"
}

stop() {
  on_workers "bash $worker stop $wait"
}

# Prints the state that worker 0 told last: running, lost, stopped, "exit STATUS" or unknown.
run_state() {
  local state time
  state=$(gcloud storage cat "$workdir/logs/worker-0.state" 2>/dev/null) || state=unknown
  read -r state time <<<"$state"
  case $state in
    running) (($(date +%s) - time < lost_seconds)) && echo running || echo lost ;;
    exit) echo "exit $time" ;;
    *) echo "$state" ;;
  esac
}

# Brings the run to its end, whatever happens to the slice.
keep() {
  local started='' failures=0 state
  if [[ $dry_run ]]; then
    show_keep
    return
  fi
  while ((failures < 5)); do
    state=$(slice_state)
    case $state in
      NOT_FOUND)
        started=no
        say "creating $name"
        create || failures=$((failures + 1))
        ;;
      TAKEN)
        failures=$((failures + 1))
        say "$name was taken, or failed; it is deleted"
        delete || :
        ;;
      ACTIVE)
        state=$(run_state)
        if [[ ! $started && $state == running ]]; then
          say "watching the run that is going on"
          started=yes
        elif [[ $started != yes ]]; then
          start_again || failures=$((failures + 1))
        else
          case $state in
            'exit 0') say "the run has finished; $name still costs money until it is deleted" ;;
            stopped) say "the run was stopped; the same command continues it" ;;
            # 143 means that the run had to end before it could save.
            'exit 75' | 'exit 143' | lost)
              say "the run was interrupted; it is started again"
              stop || :
              start_again || failures=$((failures + 1))
              ;;
            exit\ *) fail "the run has failed ($state); launch/tpu_pod.sh logs tells why" ;;
            running) failures=0 ;;
          esac
          [[ $state != 'exit 0' && $state != stopped ]] || return 0
        fi
        ;;
      *) say "$name is $state" ;;
    esac
    sleep "$poll"
  done
  fail "the run was given up after five failures in a row; look at launch/tpu_pod.sh logs"
}

start_again() {
  started=no
  setup && start && started=yes
}

show_keep() {
  say "creates the slice if it is missing:"
  create
  show_states
  say "starts the run:"
  setup
  start
  say "looks at the states every $poll seconds:"
  show_states
  execute gcloud storage cat "$workdir/logs/worker-0.state"
  say "deletes the slice when it was taken, and begins anew:"
  delete
}

delete() {
  execute gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

ask_and_delete() {
  local answer=
  if [[ ! $yes && ! $dry_run ]]; then
    read -r -p "Delete $name in $zone, with its disks? [y/N] " answer || :
    [[ $answer == [yY]* ]] || fail "nothing is deleted"
  fi
  delete
}

logs() {
  if [[ $workdir ]]; then
    execute gcloud storage cat "$workdir/logs/worker-$of_worker.log"
  else
    execute gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$of_worker" \
      "--command=tail -n 100 -F cyclip_run/log"
  fi
}

status() {
  show_states || :
  if [[ $workdir ]]; then
    say "last line of the metrics:"
    execute bash -c "gcloud storage cat -r -65536 $(quote "$workdir/metrics.jsonl") | tail -n 1"
  fi
}

check_workdir() {
  [[ ! $workdir || $workdir == gs://?* ]] ||
    fail "--workdir=$workdir is not on Cloud Storage; all workers need it, as gs://BUCKET/RUN"
}

check_run() {
  local flag config=
  [[ $workdir ]] || fail "run needs --workdir=gs://BUCKET/RUN"
  for flag in ${flags[@]+"${flags[@]}"}; do
    [[ $flag != --config=* ]] || config=yes
    [[ $flag != --workdir* ]] ||
      fail "--workdir stands before --, and the training's flags stand after it"
  done
  [[ $config ]] ||
    fail "run needs the training's flags after --, such as -- --config=configs/cc12m.py"
}

check_type() {
  [[ $type ]] || fail "$command${keep:+ --keep} needs --type=TYPE, such as v5litepod-16"
}

command=${1---help}
shift || :
case $command in
  -h | --help)
    usage
    exit
    ;;
  create | setup | run | logs | status | stop | delete) ;;
  *) fail "unknown command $command; see launch/tpu_pod.sh --help" ;;
esac

name='' zone='' project='' type='' runtime='' spot='' ref='' sync='' workdir='' keep='' yes=''
dry_run='' restarts=1000 poll=60 wait=300 of_worker=0 lost_seconds=900
flags=()
while (($#)); do
  case $1 in
    --name=* | --zone=* | --project=* | --type=* | --runtime=* | --ref=* | --workdir=* | \
      --restarts=* | --poll=* | --wait=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --worker=*) of_worker=${1#*=} ;;
    --spot | --sync | --keep | --yes) printf -v "${1#--}" yes ;;
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
    *) fail "unknown option $1; see launch/tpu_pod.sh --help" ;;
  esac
  shift
done

[[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
  fail "$command needs --name=NAME of lower-case letters, digits and dashes${name:+, not $name}"
[[ $zone ]] || fail "$command needs --zone=ZONE, such as europe-west4-b"
for option in restarts poll wait of_worker; do
  [[ ${!option} =~ ^[0-9]+$ ]] || fail "--$option=${!option} is not a whole number"
done
workdir=${workdir%/}
check_workdir
place=("--zone=$zone")
[[ ! $project ]] || place+=("--project=$project")
root=$(cd "$(dirname "$0")/.." && pwd)
staging=${XDG_CACHE_HOME:-$HOME/.cache}/cyclip_jax/$name

case $command in
  create)
    check_type
    create
    await_slice
    ;;
  setup)
    check_code
    setup
    ;;
  run)
    check_run
    if [[ $keep ]]; then
      check_type
      check_code
      keep
    else
      start
    fi
    ;;
  logs) logs ;;
  status) status ;;
  stop) stop ;;
  delete) ask_and_delete ;;
esac
