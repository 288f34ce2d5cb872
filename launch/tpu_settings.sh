# shellcheck shell=bash disable=SC2034,SC2154
# Helpers of tpu_vm.sh: commands, which a dry run prints instead; flags; the saved settings of a VM.

fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

say() { printf '%s\n' "$*" >&2; }

# --- Commands. All go through `call` or `ask`, which only print them with --dry_run.

# Prints words, quoted for a shell.
quoted() {
  local word line="" mark="'\\''"
  for word in "$@"; do
    case "$word" in
      "" | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/$mark}'" ;;
    esac
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

call() {
  if [ "$DRY_RUN" = 1 ]; then quoted "$@"; else "$@"; fi
}

# ask ASSUMED COMMAND...: runs it; its output in $answer (ASSUMED in a dry run), stderr in $errors.
ask() {
  local assumed=$1 error_file code=0
  shift
  errors=""
  if [ "$DRY_RUN" = 1 ]; then
    quoted "$@"
    answer=$assumed
    return
  fi
  error_file=$(mktemp)
  answer=$("$@" 2>"$error_file") || code=$?
  errors=$(cat "$error_file")
  rm -f "$error_file"
  return "$code"
}

# Gives up after MAX_FAILURES.
back_off() { # COUNT WHAT [EXIT_CODE]
  [ "$1" -lt "$MAX_FAILURES" ] || fail "$2; giving up after $1 failures (MAX_FAILURES)" "${3:-1}"
  wait_longer "$1" "$2"
}

# Waits longer after each consecutive failure.
wait_longer() { # COUNT WHAT
  local delay=$BACKOFF_SECONDS i
  for ((i = 1; i < $1 && delay < 900; i++)); do delay=$((delay * 2)); done
  if [ "$delay" -gt 900 ]; then delay=900; fi
  say "$2; trying again in $delay s"
  call sleep "$delay"
}

on_workers() { # WORKER COMMAND...: runs it on one worker or all, quoted for the remote shell
  local worker=$1
  shift
  call gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$worker" \
    ${ssh_flags[@]+"${ssh_flags[@]}"} --command="$(quoted "$@")"
}

copy() { # WORKER FROM TO: to or from one worker, or to all
  call gcloud compute tpus tpu-vm scp "$2" "$3" "${where[@]}" --worker="$1" ${ssh_flags[@]+"${ssh_flags[@]}"}
}

# --- Settings

nearest() { # WORD CANDIDATE...: the candidate with the smallest edit distance
  printf '%s\n' "${@:2}" | awk -v a="$1" '
    function smaller(x, y) { return x < y ? x : y }
    { n = length(a); m = length($0)
      for (j = 0; j <= m; j++) d[0, j] = j
      for (i = 1; i <= n; i++) { d[i, 0] = i
        for (j = 1; j <= m; j++)
          d[i, j] = smaller(d[i-1, j-1] + (substr(a, i, 1) != substr($0, j, 1)), \
                          1 + smaller(d[i-1, j], d[i, j-1])) }
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
      --env | --env=*) fail "$1: the name or the value is missing. Write --env=NAME=VALUE." ;;
      --spot=* | --on_demand=* | --queued=* | --local=* | --no_follow=* | --yes=* | --dry_run=* | --dry-run=*)
        fail "$1: $flag takes no value. Write $flag." ;;
      --name | --zone | --project | --accelerator | --version | --bucket | --worker | --lines | --seconds | \
        --module | --model_dir | --out | --create_flag | --ssh_flag)
        fail "$1: the value is missing. Write $1=VALUE." ;;
      *) fail "$1: unknown flag of $subcommand. Put the run's arguments after --; '$0 help' lists the flags." ;;
    esac
    shift
  done
}

need_numbers() {
  local setting
  for setting in "--worker=${WORKER/#all/0}" "--lines=$LINES_SHOWN" "--seconds=$SECONDS_TO_STOP" \
    "MAX_FAILURES=$MAX_FAILURES" "LASTING_SECONDS=$LASTING_SECONDS" "BACKOFF_SECONDS=$BACKOFF_SECONDS"; do
    # bash reads a number with a leading zero as octal.
    case "${setting#*=}" in
      "" | *[!0-9]* | 0[0-9]*) fail "$setting: expected a whole number without leading zeros. Write ${setting%%=*}=30, for example." ;;
    esac
  done
  case "$POLL_SECONDS" in
    "" | *[!0-9.]* | *.*.* | .) fail "POLL_SECONDS=$POLL_SECONDS: expected a number of seconds. Write POLL_SECONDS=30, for example." ;;
  esac
}

# Settings that are not set come from the VM's state file.
load_state() {
  local files
  STATE_DIR=${STATE_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/stepdistill_jax}
  if [ -z "${NAME:-}" ]; then
    files=("$STATE_DIR"/*.tpu_vm)
    if [ "$subcommand" != create ] && [ "${#files[@]}" = 1 ] && [ -f "${files[0]}" ]; then
      NAME=$(basename "${files[0]}" .tpu_vm)
    else
      fail "NAME is missing. Pass --name=NAME or set NAME to the name of the TPU VM."
    fi
  fi
  case "$NAME" in
    *[!a-z0-9-]*) fail "NAME=$NAME: expected lowercase letters, digits and '-'. Correct NAME." ;;
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
  [ -n "$ZONE" ] || fail "ZONE is missing. Pass --zone=ZONE or set ZONE, for example to us-central2-b."
  if [ -n "$BUCKET" ]; then BUCKET=gs://${BUCKET#gs://} BUCKET=${BUCKET%/}; fi
  case "${BUCKET#gs://}" in *:*) fail "BUCKET=${BUCKET#gs://}: expected gs://BUCKET/PATH. Correct BUCKET." ;; esac
  where=(--zone="$ZONE")
  if [ -n "$PROJECT" ]; then where+=(--project="$PROJECT"); fi
}

save_state() {
  local name value
  if [ "$DRY_RUN" = 1 ]; then return; fi
  mkdir -p "$STATE_DIR"
  umask 077 # A run's environment may contain a key.
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

# Refuses gin files and folders that the workers will not have.
check_arguments() { # run | eval
  local argument before="" named=""
  for argument in ${arguments[@]+"${arguments[@]}"}; do
    case "$argument" in --gin_search_paths*) return ;; esac
  done
  for argument in ${arguments[@]+"${arguments[@]}"}; do
    case "$before $argument" in
      "--gin_file "*) named=$argument ;;
      *" --gin_file="*) named=${argument#*=} ;;
      *) named="" ;;
    esac
    case "$named" in
      "$here"/*) fail "--gin_file=$named: the workers do not have this path. Write --gin_file=${named#"$here"/}." ;;
      "" | /* | *://*) ;;
      *) [ -f "$here/$named" ] || [ -f "$here/gin/$named" ] ||
        fail "--gin_file=$named: no such file in $here or $here/gin. Correct the name."
        git -C "$here" ls-files --error-unmatch "$named" >/dev/null 2>&1 ||
          git -C "$here" ls-files --error-unmatch "gin/$named" >/dev/null 2>&1 ||
          fail "--gin_file=$named: git does not track it, so sync does not send it. Add it with git add." ;;
    esac
    case "$1 $before $argument" in
      run* | *" -"* | *" gs://"*) ;; # A flag, a flag's value, or a path that all workers share.
      *) fail "$argument is on the workers' own disks. Pass folders on gs://BUCKET/PATH, or pass --local." ;;
    esac
    case "$argument" in -*=* | [!-]* | "") before="" ;; *) before=$argument ;; esac
  done
}

# https://cloud.google.com/tpu/docs/runtimes
runtime_version() {
  case "$ACCELERATOR" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    v5e-*) fail "ACCELERATOR=$ACCELERATOR: Cloud TPU calls v5e v5litepod. Write v5litepod-${ACCELERATOR#*-}." ;;
    *) fail "ACCELERATOR=$ACCELERATOR: its runtime version is unknown. Pass --version=VERSION." ;;
  esac
}

# Number of workers, for a dry run: a worker has four chips; v5litepod-8 and v6e-8 are one worker.
# https://cloud.google.com/tpu/docs/supported-tpu-configurations
usual_workers() {
  local size=${ACCELERATOR##*-} cores=1
  case "$ACCELERATOR" in
    v[2-4]-* | v5p-*) cores=2 ;; # Their names count cores, two a chip.
    *) if [ "$size" = 8 ]; then echo 1; return; fi ;;
  esac
  case "$size" in "" | *[!0-9]*) echo 1; return ;; esac
  echo $(((size + 4 * cores - 1) / (4 * cores)))
}
