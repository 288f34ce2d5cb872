# shellcheck shell=bash disable=SC2034,SC2154
# What tpu_vm.sh is built on: commands that a dry run prints, flags, and what is kept of a VM.

fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

say() { printf '%s\n' "$*" >&2; }

# --- Commands. Every one goes through `call` or `ask`, which --dry_run makes print it.

# Words so that a shell reads them as they are.
quoted() {
  local word line="" mark="'\\''"
  for word in "$@"; do
    case "$word" in
      "" | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/$mark}'" ;;
    esac
    line+="$word "
  done
  printf '%s' "${line% }"
}

shown() { printf '%s\n' "$(quoted "$@")"; }

call() {
  if [ "$DRY_RUN" = 1 ]; then shown "$@"; else "$@"; fi
}

# ask ASSUMED COMMAND...: what it prints, in $answer; ASSUMED in a dry run. Its errors, in $said.
ask() {
  local assumed=$1 errors code=0
  shift
  said=""
  if [ "$DRY_RUN" = 1 ]; then
    shown "$@"
    answer=$assumed
    return
  fi
  errors=$(mktemp)
  answer=$("$@" 2>"$errors") || code=$?
  said=$(cat "$errors")
  rm -f "$errors"
  return "$code"
}

pause() { call sleep "$1"; }

on_workers() { # WORKER COMMAND...: on one worker or all; quoted once for the shell at the other end
  local worker=$1
  shift
  call gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$worker" \
    ${ssh_flags[@]+"${ssh_flags[@]}"} --command="$(quoted "$@")"
}

# --- Settings

nearest() { # WORD CANDIDATE...: the candidate of the fewest edits
  printf '%s\n' "${@:2}" | awk -v a="$1" '
    function least(x, y) { return x < y ? x : y }
    { n = length(a); m = length($0)
      for (j = 0; j <= m; j++) d[0, j] = j
      for (i = 1; i <= n; i++) { d[i, 0] = i
        for (j = 1; j <= m; j++)
          d[i, j] = least(d[i-1, j-1] + (substr(a, i, 1) != substr($0, j, 1)), \
                          1 + least(d[i-1, j], d[i, j-1])) }
      if (NR == 1 || d[n, m] < best) { best = d[n, m]; word = $0 } }
    END { print word }'
}

read_arguments() {
  local flag value
  while [ "$#" -gt 0 ]; do
    flag=${1%%=*} value=${1#*=}
    case "$1" in
      --) shift; arguments=("$@"); return ;;
      --name=* | --zone=* | --project=* | --accelerator=* | --version=* | --bucket=*)
        printf -v "$(printf '%s' "${flag#--}" | tr '[:lower:]' '[:upper:]')" %s "$value" ;;
      --worker=*) WORKER=$value ;;
      --lines=*) LINES_SHOWN=$value ;;
      --seconds=*) SECONDS_TO_STOP=$value ;;
      --module=*) MODULE=$value ;;
      --model_dir=*) MODEL_DIR=$value ;;
      --out=*) OUT=$value ;;
      --create_flag=*) create_flags+=("$value") ;;
      --ssh_flag=*) ssh_flags+=("$value") ;;
      --env=?*=*) environment+=("$value") ;;
      --spot) SPOT=1 ;;
      --on_demand) SPOT=0 ;;
      --queued) QUEUED=1 ;;
      --local) LOCAL=1 ;;
      --no_follow) FOLLOW=0 ;;
      --yes) YES=1 ;;
      --dry_run | --dry-run) DRY_RUN=1 ;;
      --env | --env=*) fail "$1: no variable with its value; write --env=NAME=VALUE" ;;
      --spot=* | --on_demand=* | --queued=* | --local=* | --no_follow=* | --yes=* | --dry_run=* | --dry-run=*)
        fail "$1: $flag takes no value; write $flag alone, or leave it out" ;;
      --name | --zone | --project | --accelerator | --version | --bucket | --worker | --lines | --seconds | \
        --module | --model_dir | --out | --create_flag | --ssh_flag)
        fail "$1: has no value; write $1=VALUE" ;;
      *) fail "$1: no flag of $subcommand; what the run is to get goes behind --, and '$0 help' lists flags" ;;
    esac
    shift
  done
}

need_numbers() {
  local given
  for given in "--worker=${WORKER/#all/0}" "--lines=$LINES_SHOWN" "--seconds=$SECONDS_TO_STOP" \
    "MAX_FAILURES=$MAX_FAILURES" "LASTING_SECONDS=$LASTING_SECONDS" "BACKOFF_SECONDS=$BACKOFF_SECONDS"; do
    # With a zero before it bash would read an octal number.
    case "${given#*=}" in
      "" | *[!0-9]* | 0[0-9]*) fail "$given: expected a whole number; write ${given%%=*}=30 or the like" ;;
    esac
  done
  case "$POLL_SECONDS" in
    "" | *[!0-9.]* | *.*.* | .) fail "POLL_SECONDS=$POLL_SECONDS: expected seconds; write 30 or the like" ;;
  esac
}

# What was given stays; what was not is taken from the VM's file.
load_state() {
  local files
  STATE_DIR=${STATE_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/stepdistill_jax}
  if [ -z "${NAME:-}" ]; then
    files=("$STATE_DIR"/*.tpu_vm)
    if [ "$subcommand" != create ] && [ "${#files[@]}" = 1 ] && [ -f "${files[0]}" ]; then
      NAME=$(basename "${files[0]}" .tpu_vm)
    else
      fail "NAME is missing: which TPU VM? pass --name=NAME or set NAME"
    fi
  fi
  case "$NAME" in
    *[!a-z0-9-]*) fail "NAME=$NAME: a TPU VM's name has small letters, digits and '-' only" ;;
  esac
  state_file=$STATE_DIR/$NAME.tpu_vm
  saved_create_flags=() saved_ssh_flags=() last_run=()
  # shellcheck source=/dev/null
  if [ "$subcommand" != create ] && [ -f "$state_file" ]; then . "$state_file"; fi
  ZONE=${ZONE:-${saved_zone:-}} PROJECT=${PROJECT:-${saved_project:-}}
  ACCELERATOR=${ACCELERATOR:-${saved_accelerator:-}} VERSION=${VERSION:-${saved_version:-}}
  BUCKET=${BUCKET:-${saved_bucket:-}} SPOT=${SPOT:-${saved_spot:-}} QUEUED=${QUEUED:-${saved_queued:-}}
  if [ "${#create_flags[@]}" = 0 ]; then create_flags=(${saved_create_flags[@]+"${saved_create_flags[@]}"}); fi
  if [ "${#ssh_flags[@]}" = 0 ]; then ssh_flags=(${saved_ssh_flags[@]+"${saved_ssh_flags[@]}"}); fi
  [ -n "$ZONE" ] || fail "ZONE is missing: where is $NAME? pass --zone=ZONE or set ZONE, as us-central2-b"
  if [ -n "$BUCKET" ]; then BUCKET=gs://${BUCKET#gs://} BUCKET=${BUCKET%/}; fi
  case "${BUCKET#gs://}" in *:*) fail "BUCKET=${BUCKET#gs://}: expected gs://BUCKET/PATH" ;; esac
  where=(--zone="$ZONE")
  if [ -n "$PROJECT" ]; then where+=(--project="$PROJECT"); fi
}

save_state() {
  local name value
  if [ "$DRY_RUN" = 1 ]; then return; fi
  mkdir -p "$STATE_DIR"
  umask 077 # The environment of a run may hold a key.
  {
    for name in ZONE PROJECT ACCELERATOR VERSION BUCKET SPOT QUEUED; do
      value=$(printf '%s' "$name" | tr '[:upper:]' '[:lower:]')
      printf 'saved_%s=%s\n' "$value" "$(quoted "${!name}")"
    done
    printf 'saved_create_flags=(%s)\n' "$(quoted ${create_flags[@]+"${create_flags[@]}"})"
    printf 'saved_ssh_flags=(%s)\n' "$(quoted ${ssh_flags[@]+"${ssh_flags[@]}"})"
    printf 'last_run=(%s)\n' "$(quoted ${last_run[@]+"${last_run[@]}"})"
  } >"$state_file.new"
  mv "$state_file.new" "$state_file"
}

# https://cloud.google.com/tpu/docs/runtimes
runtime_version() {
  case "$ACCELERATOR" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    v5e-*) fail "ACCELERATOR=$ACCELERATOR: v5e is called v5litepod here; write v5litepod-${ACCELERATOR#*-}" ;;
    *) fail "ACCELERATOR=$ACCELERATOR: no runtime is known for it; pass --version=VERSION" ;;
  esac
}

# Workers of a slice, for a dry run: four chips each, and a slice of one worker may have eight.
# https://cloud.google.com/tpu/docs/supported-tpu-configurations
usual_workers() {
  local size=${ACCELERATOR##*-} cores=1
  case "$ACCELERATOR" in
    v[2-4]-* | v5p-*) cores=2 ;; # These are counted by cores, two to a chip.
    *) if [ "$size" = 8 ]; then echo 1; return; fi ;;
  esac
  case "$size" in "" | *[!0-9]*) echo 1; return ;; esac
  echo $(((size + 4 * cores - 1) / (4 * cores)))
}
