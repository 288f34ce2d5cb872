#!/usr/bin/env bash
# Trains and evaluates on Cloud TPU VMs, from a git checkout:
#   launch/tpu_vm.sh SUBCOMMAND [--FLAG=VALUE...] [-- ARGUMENTS]
#
#   create    create the TPU VM: on demand or --spot; with --queued as a queued resource
#   setup     sync, then install this package with its extra tpu on all workers
#   sync      send the files that git tracks, with their local changes, to all workers
#   run       start python -m launch.train ARGUMENTS on all workers; it continues when ssh ends
#   eval      start python -m launch.batch_eval ARGUMENTS; each worker evaluates its share of the runs
#   status    show the state of the VM and of each worker, with its last log line
#   logs      follow the log of --worker=N (default 0)
#   stop      send SIGTERM, at which a run saves; SIGKILL after --seconds=N (default 120)
#   resume    start the last run or eval again, on a new VM if the old one was preempted
#   keep      resume until the run ends with exit code 0, or with 2, 3 or 4, which no restart fixes
#   fetch     copy results without checkpoints: fetch [--model_dir=DIR] [--out=DIR]
#   delete    delete the VM (and its queued resource) after confirmation, or with --yes
#
# Settings are flags (--name=...) or environment variables (NAME=...). create, run and eval save them
# in STATE_DIR (~/.local/state/stepdistill_jax): later commands need NAME only, or nothing if there is
# one VM.
#
#   NAME, ZONE, PROJECT (default: gcloud's), ACCELERATOR (for example v5litepod-16)
#   VERSION   the runtime image (default: by ACCELERATOR)
#   BUCKET=gs://BUCKET/PATH   runs without a MODEL_DIR write to BUCKET/NAME
#   --create_flag=FLAG, --ssh_flag=FLAG   passed on to gcloud; repeatable
#   --env=NAME=VALUE   environment variable of run and eval; repeatable
#   --module=launch.sweep   the program of run (default launch.train)
#   --local   allow a MODEL_DIR on the workers' own disks
#   --lines=N, --no_follow   for logs
#   PYTHON_VERSION   for setup (default 3.11)
#   POLL_SECONDS (30), BACKOFF_SECONDS (30; doubles up to 900), MAX_FAILURES (10) and LASTING_SECONDS
#   (3600; a run of this length resets the count of failures)   for keep
#   --dry_run   print every command and run none; assumes that the VM is preempted, then ready
#
# Exit codes: 2 wrong input; keep returns the run's exit code; otherwise gcloud's.
set -euo pipefail

COMMANDS="create setup sync run eval status logs stop resume keep fetch delete help"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
worker_script=stepdistill/code/launch/tpu_worker.sh

# shellcheck source=launch/tpu_settings.sh
. "$here/launch/tpu_settings.sh"

# --- The VM

need_accelerator() {
  [ -n "$ACCELERATOR" ] || fail "ACCELERATOR is missing. Pass --accelerator=TYPE, for example --accelerator=v5litepod-16."
  if [ -z "$VERSION" ]; then VERSION=$(runtime_version) || exit; fi
}

create_vm() {
  local flags=()
  need_accelerator
  if [ "$SPOT" = 1 ]; then flags+=(--spot); fi
  flags+=(${create_flags[@]+"${create_flags[@]}"})
  if [ "$QUEUED" = 1 ]; then
    call gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${where[@]}" \
      --accelerator-type="$ACCELERATOR" --runtime-version="$VERSION" ${flags[@]+"${flags[@]}"} || return
    wait_for_queue
  else
    call gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" \
      --accelerator-type="$ACCELERATOR" --version="$VERSION" ${flags[@]+"${flags[@]}"}
  fi
}

delete_vm() {
  if [ "$QUEUED" = 1 ]; then
    call gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
  else
    call gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}" --quiet
  fi
}

# state_of KIND FIELD ASSUMED: sets $answer to the state, MISSING if it does not exist.
state_of() {
  if ask "$3" gcloud compute tpus "$1" describe "$NAME" "${where[@]}" --format="value($2)"; then return; fi
  case "$errors" in
    *NOT_FOUND*) answer=MISSING ;;
    *) say "gcloud cannot describe $NAME: ${errors##*$'\n'}"; return 1 ;;
  esac
}

wait_for_queue() {
  while state_of queued-resources state.state ACTIVE || return; do
    case "$answer" in
      ACTIVE) return ;;
      FAILED | SUSPENDED | DELETING | MISSING)
        say "the queued resource $NAME is $answer"
        return 1 ;;
    esac
    say "the queued resource $NAME is $answer; checking again in $POLL_SECONDS s"
    call sleep "$POLL_SECONDS"
  done
}

# Waits for a ready VM; recreates it and sets it up if it is gone.
ensure_vm() {
  if [ "$QUEUED" = 1 ]; then
    state_of queued-resources state.state "${assumed_vm/PREEMPTED/SUSPENDED}" || return
    case "$answer" in
      ACTIVE | READY) state_of tpu-vm state READY || return ;;
      CREATING | ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES)
        wait_for_queue && set_up
        return ;;
    esac
  else
    state_of tpu-vm state "$assumed_vm" || return
  fi
  case "$answer" in
    READY) return ;;
    MISSING) say "$NAME does not exist; creating it" ;;
    PREEMPTED | TERMINATED | SUSPENDED | SUSPENDING | FAILED)
      say "$NAME is $answer; recreating it"
      delete_vm || return ;;
    STOPPED) fail "$NAME is STOPPED. Start it with: gcloud compute tpus tpu-vm start $NAME ${where[*]}" ;;
    *) say "$NAME is $answer"; return 1 ;;
  esac
  create_vm || { create_failed=1; return 1; }
  set_up
}

# --- Code, runs, results

sync_code() {
  local archive=$STATE_DIR/$NAME.tar.gz untracked
  [ -d "$here/.git" ] || [ -f "$here/.git" ] || fail "$here is not a git checkout, but sync sends the files that git tracks. Clone the repository."
  untracked=$(git -C "$here" ls-files --others --exclude-standard | sed -n 1,5p | tr '\n' ' ')
  if [ -n "$untracked" ]; then say "not sent, because git does not track it: $untracked(git add what the run needs)"; fi
  call mkdir -p "$STATE_DIR" || return
  # Tracked files with their local changes, without deleted ones.
  # shellcheck disable=SC2016
  call bash -c 'set -o pipefail; cd "$1" && git ls-files -z | while IFS= read -r -d "" f; do
  if [ -e "$f" ]; then printf "%s\0" "$f"; fi; done | tar --null -T - -czf "$2"' _ "$here" "$archive" || return
  copy all "$archive" "$NAME:stepdistill.tar.gz" || return
  # Deletes the files of the previous sync first; files written by runs stay.
  on_workers all bash -c 'set -e; mkdir -p stepdistill/code; cd stepdistill/code
if [ -f ../synced ]; then tr "\n" "\0" <../synced | xargs -0 rm -f; fi
tar -xzf ~/stepdistill.tar.gz; tar -tzf ~/stepdistill.tar.gz >../synced'
}

set_up() {
  sync_code && on_workers all env PYTHON_VERSION="${PYTHON_VERSION:-3.11}" bash "$worker_script" setup
}

remember_run() { # run | eval: saves the kind, module, environment and arguments as the last run
  local argument model_dir=""
  for argument in ${arguments[@]+"${arguments[@]}"}; do
    case "$argument" in --gin.MODEL_DIR=*) model_dir=${argument#*=} ;; esac
  done
  if [ "$LOCAL" = 0 ]; then check_arguments "$1"; fi
  if [ "$1" = run ] && [ "$MODULE" = launch.train ]; then
    if [ -z "$model_dir" ] && [ -n "$BUCKET" ]; then
      model_dir=$BUCKET/$NAME
      say "MODEL_DIR is $model_dir (from BUCKET); a MODEL_DIR in a gin file is ignored"
      arguments+=("--gin.MODEL_DIR=$model_dir")
    fi
    case "$model_dir" in
      gs://* | [\'\"]gs://*) ;;
      "") [ "$LOCAL" = 1 ] || fail "MODEL_DIR is missing, and gin files are not read here. \
Pass --gin.MODEL_DIR=gs://BUCKET/PATH, set BUCKET, or pass --local." ;;
      *) [ "$LOCAL" = 1 ] || fail "MODEL_DIR=$model_dir is on the workers' own disks, which \
a preempted VM loses. Pass --gin.MODEL_DIR=gs://BUCKET/PATH, set BUCKET, or pass --local." ;;
    esac
  fi
  last_run=("$1" "$MODULE" "${#environment[@]}" ${environment[@]+"${environment[@]}"} \
    ${arguments[@]+"${arguments[@]}"})
  save_state
}

# Sends NAME=VALUE... to all workers in a file, which `start` reads and deletes. In a command line,
# every user of the machine could read a key.
send_environment() {
  local file=$STATE_DIR/$NAME.env code=0
  if [ "$DRY_RUN" = 0 ]; then (umask 077 && printf '%s\0' "$@" >"$file") || return; fi
  copy all "$file" "$NAME:stepdistill.env" || code=$?
  call rm -f "$file"
  return "$code"
}

# Call before deleting or creating a VM.
require_run() {
  [ "${#last_run[@]}" -gt 0 ] || fail "no run was started on $NAME yet. Start one with '$0 run --name=$NAME -- ...'."
}

start_run() {
  local kind module count variables=() worker workers=1
  require_run
  kind=${last_run[0]} module=${last_run[1]} count=${last_run[2]}
  arguments=(${last_run[@]+"${last_run[@]:3+count}"})
  if [ "$count" -gt 0 ]; then send_environment "${last_run[@]:3:count}" || return; fi
  if [ "$kind" = run ]; then
    on_workers all bash "$worker_script" start python -m "$module" ${arguments[@]+"${arguments[@]}"}
    return
  fi
  ask "$(usual_workers)" gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format='value(networkEndpoints.len())' ||
    { say "gcloud cannot count the workers of $NAME: ${errors##*$'\n'}"; return 1; }
  workers=$answer
  # A host of a multi-host slice waits for the other hosts unless these variables limit it to its own
  # chips: four on every multi-host slice.
  if [ "$workers" -gt 1 ]; then
    variables=("TPU_PROCESS_BOUNDS=1,1,1" "TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1"
      "TPU_VISIBLE_CHIPS=0,1,2,3" TPU_WORKER_ID=0 TPU_WORKER_HOSTNAMES=localhost)
  fi
  for ((worker = 0; worker < workers; worker++)); do
    on_workers "$worker" bash "$worker_script" start ${variables[@]+"${variables[@]}"} \
      python -m launch.batch_eval --worker="$worker" --workers="$workers" ${arguments[@]+"${arguments[@]}"} ||
      return
  done
}

# Sets $outcome, over all workers: bare (one is not set up), idle, running, stuck (some failed while
# others run and wait for them), or the exit code of the run.
read_outcome() {
  local kind state code running=0 idle=0 codes="" final
  ask "worker assumed $assumed_run" "${ask_status[@]}" || return
  while read -r kind _ state code _; do
    [ "$kind" = worker ] || continue
    case "$state" in
      bare) outcome=bare; return ;;
      running) running=$((running + 1)) ;;
      idle) idle=$((idle + 1)) ;;
      exit) codes+=" $code " ;;
    esac
  done <<<"$answer"
  if [ "$running" -gt 0 ]; then
    outcome=running
    if [ "${last_run[0]:-}" = run ] && [ -n "${codes//[ 0]/}" ]; then outcome=stuck; fi
    return
  fi
  outcome=idle
  if [ "$idle" -gt 0 ] || [ -z "$codes" ]; then return; fi
  # 2 and 3 are final. When one worker crashes, the others end with 69 or, stopped, with 75: the
  # crash's exit code takes precedence over these.
  for final in 2 3; do
    case "$codes" in *" $final "*) outcome=$final; return ;; esac
  done
  for code in $codes; do
    outcome=$code
    case "$code" in 0 | 4 | 69 | 75) ;; *) return ;; esac
  done
  outcome=0
  for final in 69 75 4; do
    case "$codes" in *" $final "*) outcome=$final; return ;; esac
  done
}

keep() {
  local failures=0 crashes=0 stuck=0 no_capacity=0 since=$SECONDS
  require_run
  while :; do
    create_failed=0
    if ! ensure_vm || ! read_outcome; then
      # Spot capacity may come back at any time.
      if [ "$create_failed" = 1 ]; then
        no_capacity=$((no_capacity + 1))
        wait_longer "$no_capacity" "$NAME cannot be created"
        continue
      fi
      failures=$((failures + 1))
      back_off "$failures" "$NAME cannot be reached or created"
      continue
    fi
    no_capacity=0
    case "$outcome" in
      0) say "$NAME has finished"; return 0 ;;
      2 | 3 | 4) fail "the run on $NAME ended with exit code $outcome, which a restart cannot fix. Read the log with '$0 logs'." "$outcome" ;;
      running)
        stuck=0 failures=0
        # It has saved since, so the next failure has another cause.
        if [ $((SECONDS - since)) -ge "$LASTING_SECONDS" ]; then crashes=0; fi
        call sleep "$POLL_SECONDS"
        continue ;;
      stuck)
        stuck=$((stuck + 1))
        if [ "$stuck" -ge 3 ]; then on_workers all bash "$worker_script" stop 30 || true; stuck=0; fi
        call sleep "$POLL_SECONDS"
        continue ;;
      75) crashes=0; say "$NAME was preempted and saved; starting again" ;;
      idle) ;;
      bare)
        set_up || { failures=$((failures + 1)); back_off "$failures" "$NAME could not be set up"; }
        continue ;;
      *)
        crashes=$((crashes + 1))
        back_off "$crashes" "the run on $NAME ended with exit code $outcome" "$outcome" ;;
    esac
    start_run || { failures=$((failures + 1)); back_off "$failures" "the run on $NAME did not start"; }
    since=$SECONDS assumed_vm=READY assumed_run="exit 0"
  done
}

fetch_results() {
  local folder=${MODEL_DIR:-} argument i
  for ((i = 3; i < ${#last_run[@]}; i++)); do
    argument=${last_run[i]}
    case "$argument" in --gin.MODEL_DIR=*) if [ -z "${MODEL_DIR:-}" ]; then folder=${argument#*=}; fi ;; esac
  done
  folder=${folder#[\'\"]} folder=${folder%[\'\"]} folder=${folder%/}
  [ -n "$folder" ] || fail "MODEL_DIR is unknown: no run was started with one. Pass --model_dir=DIR."
  OUT=${OUT:-runs/$(basename "$folder")}
  call mkdir -p "$OUT"
  case "$folder" in
    gs://*) call gcloud storage rsync "$folder" "$OUT" --recursive --exclude='(^|/)checkpoints/.*' ;;
    *)
      on_workers 0 bash "$worker_script" pack "$folder"
      copy 0 "$NAME:stepdistill/results.tar.gz" "$OUT/results.tar.gz"
      call tar -xzf "$OUT/results.tar.gz" -C "$OUT"
      call rm "$OUT/results.tar.gz" ;;
  esac
  say "results are in $OUT"
}

show_status() {
  state_of tpu-vm state READY || exit 1
  [ "$DRY_RUN" = 1 ] || printf '%s (%s) is %s\n' "$NAME" "${ACCELERATOR:-$ZONE}" "$answer"
  if [ "$QUEUED" = 1 ] && [ "$answer" != READY ]; then
    state_of queued-resources state.state ACTIVE || exit 1
    printf 'its queued resource is %s\n' "$answer"
  elif [ "$answer" = READY ]; then
    call "${ask_status[@]}"
  fi
}

confirm_delete() {
  local reply=""
  if [ "$YES" != 1 ] && [ "$DRY_RUN" != 1 ]; then
    printf 'delete %s in %s and everything on its disks? [y/N] ' "$NAME" "$ZONE" >&2
    read -r reply || true
    case "$reply" in y | Y | yes) ;; *) fail "not deleted. Answer y, or pass --yes." ;; esac
  fi
  delete_vm
  call rm -f "$state_file" "$STATE_DIR/$NAME.tar.gz" "$STATE_DIR/$NAME.env"
}

main() {
  subcommand=${1:-help}
  case " $COMMANDS " in
    *" $subcommand "*) ;;
    *)
      # shellcheck disable=SC2086
      fail "$subcommand: unknown subcommand; the nearest is $(nearest "$subcommand" $COMMANDS). Use one of: $COMMANDS." ;;
  esac
  if [ "$subcommand" = help ]; then
    sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    return
  fi
  shift
  arguments=() create_flags=() ssh_flags=() environment=()
  DRY_RUN=0 YES=0 LOCAL=0 FOLLOW=1 WORKER=0 LINES_SHOWN=100 SECONDS_TO_STOP=120 MODULE=launch.train
  POLL_SECONDS=${POLL_SECONDS:-30} BACKOFF_SECONDS=${BACKOFF_SECONDS:-30} MAX_FAILURES=${MAX_FAILURES:-10}
  LASTING_SECONDS=${LASTING_SECONDS:-3600}
  # A MODEL_DIR or OUT in the environment may belong to another program.
  MODEL_DIR="" OUT=""
  # What a dry run assumes of the VM and its run.
  assumed_vm=PREEMPTED assumed_run="idle -"
  read_arguments "$@"
  need_numbers
  if [ "$DRY_RUN" = 0 ] && ! command -v gcloud >/dev/null; then
    fail "gcloud is not on PATH. Install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
  fi
  load_state
  ask_status=(gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all ${ssh_flags[@]+"${ssh_flags[@]}"}
    --command="if [ -f $worker_script ]; then bash $worker_script status; else echo worker \$(hostname) bare -; fi")
  case "$subcommand" in
    create) need_accelerator; save_state; create_vm ;;
    setup) set_up ;;
    sync) sync_code ;;
    run | eval) remember_run "$subcommand"; start_run ;;
    status) show_status ;;
    logs)
      if [ "$FOLLOW" = 1 ]; then set -- -F; else set --; fi
      on_workers "$WORKER" bash "$worker_script" log "$LINES_SHOWN" "$@" ;;
    stop) on_workers all bash "$worker_script" stop "$SECONDS_TO_STOP" ;;
    resume) require_run && ensure_vm && start_run ;;
    keep) keep ;;
    fetch) fetch_results ;;
    delete) confirm_delete ;;
  esac
}

main "$@"
