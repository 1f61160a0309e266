#!/usr/bin/env bash
# Does one worker's part of a run on a TPU pod; launch/tpu_pod.sh calls it on all workers.
set -euo pipefail
shopt -s inherit_errexit

usage() {
  cat <<'EOF'
Does one worker's part of a run on a TPU pod; launch/tpu_pod.sh calls it on all workers.

  launch/tpu_worker.sh idle                 fails if a run is going on
  launch/tpu_worker.sh install              installs Python 3.11 and the packages of the lock in
                                            ~/cyclip_venv
  launch/tpu_worker.sh start WORKDIR RESTARTS FLAG…
                                            starts the training under supervise.py, and returns
  launch/tpu_worker.sh stop SECONDS         lets the run save and end, and waits for that

--dry-run before the action prints the commands and runs none. The process numbers and the log are
in ~/cyclip_run. Every minute, and at the end, the log is copied to WORKDIR/logs/worker-N.log, and
one line is written to worker-N.state: "running TIME", "stopped" (by stop) or "exit STATUS".
EOF
}

readonly UV_VERSION=0.13.9
readonly STOPPED_EXIT_CODE=75
readonly RUN=$HOME/cyclip_run ENVIRONMENT=$HOME/cyclip_venv
readonly COPY_SECONDS=${CYCLIP_COPY_SECONDS:-60}
readonly METADATA=http://metadata.google.internal/computeMetadata/v1/instance/attributes

fail() {
  printf 'error: worker %s: %s\n' "$(hostname)" "$*" >&2
  exit 2
}

execute() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@" | sed 's/ $/\n/'
  else
    "$@"
  fi
}

# Says whether a process looks after the supervisor. Another process may have its number by now.
is_running() {
  [[ -e $RUN/pid ]] && read -r wrapper supervisor <"$RUN/pid" &&
    tr '\0' ' ' 2>/dev/null <"/proc/$wrapper/cmdline" | grep -q tpu_worker.sh
}

check_idle() {
  if is_running; then
    fail "a run is going on here; end it with launch/tpu_pod.sh stop"
  fi
}

install() {
  # With the variable, Ubuntu 24.04's pip installs for this user; older versions ignore it.
  execute env PIP_BREAK_SYSTEM_PACKAGES=1 \
    python3 -m pip install --quiet --user "uv==$UV_VERSION"
  local uv=$HOME/.local/bin/uv python=$ENVIRONMENT/bin/python
  execute "$uv" venv --quiet --allow-existing --python=3.11 "$ENVIRONMENT"
  execute "$uv" pip install --quiet --python="$python" --requirement=launch/requirements-tpu.lock
  execute "$uv" pip install --quiet --python="$python" --no-deps --editable=.
}

# Sets `command` to what trains, under its supervisor.
compose_command() {
  local workdir=$1 restarts=$2 python=$ENVIRONMENT/bin/python
  shift 2
  command=(
    "$python" launch/supervise.py "--restarts=$restarts" "--log=$RUN/log" --
    "$python" -m cyclip_jax.main --distributed "--stopped_exit_code=$STOPPED_EXIT_CODE"
    "--workdir=$workdir" "$@"
  )
}

start() {
  compose_command "$@"
  if [[ $dry_run ]]; then
    execute "${command[@]}"
    return
  fi
  check_idle
  mkdir -p "$RUN"
  rm -f "$RUN/pid" "$RUN/stopping"
  number=$(curl --silent --fail --header 'Metadata-Flavor: Google' \
    "$METADATA/agent-worker-number") || fail "the metadata server does not tell the worker's number"
  # On a new machine, the log continues the copy of the old machine's log.
  if [[ ! -e $RUN/log ]]; then
    gcloud storage cp --quiet "$1/logs/worker-$number.log" "$RUN/log" &>/dev/null || :
  fi
  publish "$1" "$number" "running $(date +%s)" ||
    fail "$1/logs cannot be written: $(tail -n 1 "$RUN/copies.log")"
  setsid nohup bash launch/tpu_worker.sh attend "$number" "$@" </dev/null &>>"$RUN/copies.log" &
  printf 'worker %s: started; its log is %s/logs/worker-%s.log\n' "$number" "$1" "$number"
}

# Copies the log, and one line about the state of the run, to the bucket.
publish() {
  local workdir=$1 number=$2 state=$3
  touch "$RUN/log"
  {
    gcloud storage cp --quiet "$RUN/log" "$workdir/logs/worker-$number.log" &&
      gcloud storage cp --quiet - "$workdir/logs/worker-$number.state" <<<"$state"
  } &>>"$RUN/copies.log"
}

# Runs in the background: starts the supervisor, and publishes its state until it has ended.
attend() {
  local number=$1 status=0 second
  shift
  compose_command "$@"
  "${command[@]}" >/dev/null 2>>"$RUN/log" &
  echo "$$ $!" >"$RUN/pid"
  # A machine that is shut down sends SIGTERM to every process; this one still has to publish how
  # the run ended.
  trap '' TERM
  while kill -0 "$!" 2>/dev/null; do
    for ((second = 0; second < COPY_SECONDS; second++)); do
      kill -0 "$!" 2>/dev/null && sleep 1
    done
    publish "$1" "$number" "running $(date +%s)" || :
  done
  wait "$!" || status=$?
  if [[ -e $RUN/stopping ]]; then
    publish "$1" "$number" stopped || :
  else
    publish "$1" "$number" "exit $status" || :
  fi
  rm -f "$RUN/pid"
}

stop() {
  local seconds=$1
  if [[ $dry_run ]]; then
    # shellcheck disable=SC2016  # the line is for a shell to come
    echo 'kill -TERM "$(cut -d " " -f 2 ~/cyclip_run/pid)"'
    return
  fi
  if ! is_running; then
    echo "worker $(hostname): no run is going on"
    return
  fi
  touch "$RUN/stopping"
  kill -TERM "$supervisor" 2>/dev/null || :
  while is_running; do
    ((seconds-- > 0)) || fail "the run has not ended yet; look at launch/tpu_pod.sh logs"
    sleep 1
  done
  echo "worker $(hostname): the run has ended: $(tail -n 1 "$RUN/log")"
}

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=yes
  shift
fi
cd "$(dirname "$0")/.."
action=${1---help}
shift || :
case $action in
  -h | --help) usage ;;
  idle) check_idle ;;
  install) install ;;
  start)
    (($# > 2)) || fail "start needs WORKDIR, RESTARTS and the run's flags"
    start "$@"
    ;;
  attend) attend "$@" ;;
  stop) stop "${1:-300}" ;;
  *) fail "unknown action $action; see launch/tpu_worker.sh --help" ;;
esac
