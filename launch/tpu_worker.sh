#!/usr/bin/env bash
# The part of tpu_vm.sh that runs on every worker of a TPU VM.
#
#   tpu_worker.sh setup             install the package with its extra tpu in ~/stepdistill/venv
#   tpu_worker.sh start [NAME=VALUE...] COMMAND...   start COMMAND; it continues when ssh ends.
#                                   Secret NAME=VALUE come from ~/stepdistill.env
#   tpu_worker.sh status            print one line: bare | idle | running PID | exit CODE, last log line
#   tpu_worker.sh stop SECONDS      send SIGTERM, at which a run saves; SIGKILL after SECONDS
#   tpu_worker.sh log LINES [-F]    print the end of the log; -F follows it
#   tpu_worker.sh pack FOLDER       write FOLDER without checkpoints to ~/stepdistill/results.tar.gz
#
# ~/stepdistill holds code, venv, ready (after setup), run.log, run.command, run.pid (of the
# supervisor) and run.exit (the exit code).
set -euo pipefail

root=$HOME/stepdistill

fail() {
  printf 'error: %s: %s\n' "$(hostname)" "$1" >&2
  exit "${2:-2}"
}

# uv installs a newer Python than the image's (Ubuntu 22.04 has 3.10) without root.
setup() {
  cd "$root/code" || fail "no code in $root. Run 'tpu_vm.sh sync' first."
  export PATH="$HOME/.local/bin:$PATH"
  if ! command -v uv >/dev/null; then
    curl --fail --silent --show-error --location --retry 5 https://astral.sh/uv/install.sh | sh
  fi
  rm -f "$root/ready"
  uv venv --quiet --allow-existing --python "${PYTHON_VERSION:-3.11}" "$root/venv"
  uv pip install --quiet --python "$root/venv/bin/python" -c constraints.txt -e '.[tpu]'
  "$root/venv/bin/python" -c 'import platform, jax, libtpu, stepdistill_jax
versions = platform.python_version(), "jax", jax.__version__, "libtpu", libtpu.__version__
print(platform.node(), "Python", *versions)'
  touch "$root/ready"
}

# Prints the supervisor's pid while it runs; a pid that another program took over does not count.
running() {
  local pid
  pid=$(cat "$root/run.pid" 2>/dev/null) || return 1
  grep -qs tpu_worker.sh "/proc/$pid/cmdline" || return 1
  printf '%s' "$pid"
}

start() {
  local pid variable
  # Deleted even if the start fails: it may contain a key.
  if [ -f ~/stepdistill.env ]; then
    while IFS= read -r -d "" variable; do export "${variable?}"; done <~/stepdistill.env
    rm -f ~/stepdistill.env
  fi
  [ -f "$root/ready" ] || fail "this worker is not set up. Run 'tpu_vm.sh setup' first."
  if pid=$(running); then
    fail "a run is in progress (pid $pid): $(cat "$root/run.command"). Stop it first with 'tpu_vm.sh stop'."
  fi
  # Not part of run.command, which the log shows.
  while [[ ${1:-} == [A-Za-z_]*=* ]]; do
    export "${1?}"
    shift
  done
  [ "$#" -gt 0 ] || fail "start: the command is missing. Pass it after the variables."
  rm -f "$root/run.exit" "$root/run.pid"
  printf '%q ' "$@" >"$root/run.command"
  # In a new session, the end of ssh and its Ctrl-C do not reach it.
  setsid nohup bash "$0" supervise "$@" >>"$root/run.log" 2>&1 </dev/null &
  for _ in $(seq 100); do
    if [ -s "$root/run.pid" ]; then
      printf '%s started, pid %s\n' "$(hostname)" "$(cat "$root/run.pid")"
      return
    fi
    sleep 0.1
  done
  fail "the run did not start. Read $root/run.log." 1
}

# Runs a command, forwards SIGTERM to it, and writes its exit code to run.exit.
supervise() {
  local child code again signalled
  cd "$root/code"
  export PATH="$root/venv/bin:$PATH" PYTHONUNBUFFERED=1
  printf '== %s: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(cat "$root/run.command")"
  "$@" &
  child=$!
  signalled=0
  trap 'signalled=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
  echo "$$" >"$root/run.pid"
  code=0
  wait "$child" || code=$?
  # A signal ends `wait` but not the child. 127 means that the child ended before: keep `code`.
  while [ "$signalled" = 1 ]; do
    signalled=0
    again=0
    wait "$child" 2>/dev/null || again=$?
    [ "$again" = 127 ] || code=$again
  done
  printf '== %s: exit code %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$code"
  echo "$code" >"$root/run.exit.new"
  mv "$root/run.exit.new" "$root/run.exit"
}

status() {
  local pid what last
  if [ ! -f "$root/ready" ]; then
    what="bare -"
  elif pid=$(running); then # Checked before run.exit, which the supervisor writes last.
    what="running $pid"
  elif [ -f "$root/run.exit" ]; then
    what="exit $(cat "$root/run.exit")"
  elif [ -f "$root/run.command" ]; then
    what="exit 137" # The supervisor was killed, or the machine restarted.
  else
    what="idle -"
  fi
  last=$(tail -c 4096 "$root/run.log" 2>/dev/null | tr '\r' '\n' | grep -v '^== \|^$' | tail -n 1 || true)
  printf 'worker %s %s %s\n' "$(hostname)" "$what" "${last:0:300}"
}

stop() {
  local pid
  pid=$(running) || { printf '%s: nothing is running\n' "$(hostname)"; return; }
  kill -TERM "$pid"
  for _ in $(seq $((${1:-120} * 5))); do
    if ! running >/dev/null; then
      printf '%s: stopped, exit code %s\n' "$(hostname)" "$(cat "$root/run.exit" 2>/dev/null || echo 137)"
      return
    fi
    sleep 0.2
  done
  kill -KILL -- "-$pid"
  printf '%s: killed, because it did not stop within %s s\n' "$(hostname)" "${1:-120}"
}

log() {
  [ -f "$root/run.log" ] || fail "no log, because no run was started here yet. Start one with 'tpu_vm.sh run'."
  exec tail -n "$1" ${2:+"$2"} "$root/run.log"
}

pack() {
  cd "$root/code"
  [ -d "$1" ] || fail "$1: no such folder in $root/code. Pass the run's MODEL_DIR."
  tar -czf "$root/results.tar.gz" --exclude=checkpoints -C "$1" .
}

case "${1:-}" in
  setup | start | supervise | status | stop | log | pack) "$@" ;;
  *) fail "${1:-}: unknown subcommand. Use one of: setup, start, status, stop, log, pack." ;;
esac
