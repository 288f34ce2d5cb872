#!/usr/bin/env bash
# Trains and scores on Cloud TPU VMs, from a git checkout:
#   launch/tpu_vm.sh SUBCOMMAND [--FLAG=VALUE...] [-- ARGUMENTS]
#
#   create    the TPU VM: on demand, --spot, and with --queued as a queued resource
#   setup     sync, then a Python environment with this package and its extra tpu, on all workers
#   sync      send the files that git tracks, as they are in this checkout, to all workers
#   run       python -m launch.train ARGUMENTS on all workers, detached: it goes on when ssh ends
#   eval      python -m launch.batch_eval ARGUMENTS: each worker on its own takes its share of folders
#   status    state of the VM; of each worker running or exit code, and its last log line
#   logs      follow the log of --worker=N (0)
#   stop      SIGTERM to the run, at which it saves; SIGKILL after --seconds=N (120)
#   resume    the last run or eval again, on a new VM where the old one was preempted
#   keep      resume for as long as it takes: until exit code 0, or one that no restart mends (2, 3, 4)
#   fetch     results without checkpoints: fetch [--model_dir=DIR] [--out=DIR]
#   delete    the VM (and its queued resource), once confirmed or with --yes
#
# Each of these is a flag (--name=...) or a variable of the environment (NAME=...); what create, run
# and eval were given is kept in STATE_DIR (~/.local/state/stepdistill_jax), so NAME is enough later,
# and nothing where there is one VM alone:
#
#   NAME, ZONE, PROJECT (gcloud's own), ACCELERATOR (v5litepod-16), VERSION (the runtime image; chosen
#   by ACCELERATOR), BUCKET (gs://BUCKET/PATH: runs without a MODEL_DIR write to BUCKET/NAME)
#   --create_flag=FLAG, --ssh_flag=FLAG   handed to gcloud as they are, each may be repeated
#   --env=NAME=VALUE   in the environment of run and eval, may be repeated
#   --module=launch.sweep   what run runs;  --local   allow a MODEL_DIR on the workers' own disks
#   --lines=N, --no_follow   of logs;  PYTHON_VERSION (3.11)   of setup
#   POLL_SECONDS (30), BACKOFF_SECONDS (30, doubled up to 900), MAX_FAILURES (10), LASTING_SECONDS
#   (3600: failures before a run that lasts so long are forgotten)   of keep
#   --dry_run   print every command, run none (VMs are taken to be preempted, then ready)
#
# Exit codes: 2 wrong input; keep gives the run's own; else gcloud's.
set -euo pipefail

COMMANDS="create setup sync run eval status logs stop resume keep fetch delete help"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
worker_script=stepdistill/code/launch/tpu_worker.sh
status_command="if [ -f $worker_script ]; then bash $worker_script status; else echo worker \$(hostname) bare -; fi"

# shellcheck source=launch/tpu_settings.sh
. "$here/launch/tpu_settings.sh"

# --- The VM

need_accelerator() {
  [ -n "$ACCELERATOR" ] || fail "ACCELERATOR is missing: what is $NAME? pass --accelerator=v5litepod-16 or the like"
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

# state_of KIND FIELD ASSUMED: $answer is the state, MISSING where there is no such thing.
state_of() {
  if ask "$3" gcloud compute tpus "$1" describe "$NAME" "${where[@]}" --format="value($2)"; then return; fi
  case "$said" in
    *NOT_FOUND*) answer=MISSING ;;
    *) say "gcloud cannot say how $NAME is: ${said##*$'\n'}"; return 1 ;;
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
    say "the queued resource $NAME is $answer; looking again in $POLL_SECONDS s"
    pause "$POLL_SECONDS"
  done
}

# A VM that is ready, made anew and set up where the old one is gone.
revive() {
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
    MISSING) say "$NAME is not there; creating it" ;;
    PREEMPTED | TERMINATED | SUSPENDED | SUSPENDING | FAILED)
      say "$NAME is $answer; creating it anew"
      delete_vm || return ;;
    STOPPED) fail "$NAME is STOPPED; start it: gcloud compute tpus tpu-vm start $NAME ${where[*]}" ;;
    *) say "$NAME is $answer"; return 1 ;;
  esac
  create_vm || { not_made=1; return 1; }
  set_up
}

# --- Code, runs, results

sync_code() {
  local archive=$STATE_DIR/$NAME.tar.gz untracked
  [ -d "$here/.git" ] || [ -f "$here/.git" ] || fail "$here is no git checkout: sync sends what git tracks"
  untracked=$(git -C "$here" ls-files --others --exclude-standard | sed -n 1,5p | tr '\n' ' ')
  if [ -n "$untracked" ]; then say "left behind, as git does not track it: $untracked(git add what is needed)"; fi
  call mkdir -p "$STATE_DIR" || return
  # With their changes, without those that are deleted.
  # shellcheck disable=SC2016
  call bash -c 'set -o pipefail; cd "$1" && git ls-files -z | while IFS= read -r -d "" f; do
  if [ -e "$f" ]; then printf "%s\0" "$f"; fi; done | tar --null -T - -czf "$2"' _ "$here" "$archive" || return
  call gcloud compute tpus tpu-vm scp "$archive" "$NAME:stepdistill.tar.gz" "${where[@]}" --worker=all \
    ${ssh_flags[@]+"${ssh_flags[@]}"} || return
  # What was sent before and is gone here goes there too; what runs have written stays.
  on_workers all bash -c 'set -e; mkdir -p stepdistill/code; cd stepdistill/code
if [ -f ../synced ]; then tr "\n" "\0" <../synced | xargs -0 rm -f; fi
tar -xzf ~/stepdistill.tar.gz; tar -tzf ~/stepdistill.tar.gz >../synced'
}

set_up() {
  sync_code && on_workers all env PYTHON_VERSION="${PYTHON_VERSION:-3.11}" bash "$worker_script" setup
}

# What no worker will find, be it a gin file that is not sent or a folder on this disk.
refuse_hopeless() { # run | eval
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
      "$here"/*) fail "--gin_file=$named: no worker has that path; write --gin_file=${named#"$here"/}" ;;
      "" | /* | *://*) ;;
      *) [ -f "$here/$named" ] || [ -f "$here/gin/$named" ] ||
        fail "--gin_file=$named: there is no $named in $here or its folder gin; correct the name"
        git -C "$here" ls-files --error-unmatch "$named" >/dev/null 2>&1 ||
          git -C "$here" ls-files --error-unmatch "gin/$named" >/dev/null 2>&1 ||
          fail "--gin_file=$named: git does not track it, so that sync leaves it behind; git add it" ;;
    esac
    case "$1 $before $argument" in
      run* | *" -"* | *" gs://"*) ;; # A flag, the value that follows it, or what all workers see.
      *) fail "$argument lies on the workers' own disks: name folders at gs://BUCKET/PATH, or pass --local" ;;
    esac
    case "$argument" in -*=* | [!-]* | "") before="" ;; *) before=$argument ;; esac
  done
}

remember_run() { # run | eval: the last run is what it is, its arguments and its environment
  local argument model_dir=""
  for argument in ${arguments[@]+"${arguments[@]}"}; do
    case "$argument" in --gin.MODEL_DIR=*) model_dir=${argument#*=} ;; esac
  done
  if [ "$LOCAL" = 0 ]; then refuse_hopeless "$1"; fi
  if [ "$1" = run ] && [ "$MODULE" = launch.train ]; then
    if [ -z "$model_dir" ] && [ -n "$BUCKET" ]; then
      model_dir=$BUCKET/$NAME
      say "MODEL_DIR is $model_dir (by BUCKET), whatever a gin file says"
      arguments+=("--gin.MODEL_DIR=$model_dir")
    fi
    case "$model_dir" in
      gs://* | [\'\"]gs://*) ;;
      "") [ "$LOCAL" = 1 ] || fail "no MODEL_DIR is given, and that of a gin file is not read here: \
pass --gin.MODEL_DIR=gs://BUCKET/PATH, set BUCKET, or pass --local" ;;
      *) [ "$LOCAL" = 1 ] || fail "MODEL_DIR=$model_dir lies on the workers' own disks, which \
a preempted VM loses: pass --gin.MODEL_DIR=gs://BUCKET/PATH, set BUCKET, or pass --local" ;;
    esac
  fi
  last_run=("$1" "$MODULE" "${#environment[@]}" ${environment[@]+"${environment[@]}"} \
    ${arguments[@]+"${arguments[@]}"})
  save_state
}

# Sends NAME=VALUE... to all workers as a file, which `start` reads and deletes: in a command all who
# are on the machine would see a value, which may be a key.
send_environment() {
  local file=$STATE_DIR/$NAME.env code=0
  if [ "$DRY_RUN" = 0 ]; then (umask 077 && printf '%s\0' "$@" >"$file") || return; fi
  call gcloud compute tpus tpu-vm scp "$file" "$NAME:stepdistill.env" "${where[@]}" --worker=all \
    ${ssh_flags[@]+"${ssh_flags[@]}"} || code=$?
  call rm -f "$file"
  return "$code"
}

# To be asked before a VM is deleted or made for it.
need_run() {
  [ "${#last_run[@]}" -gt 0 ] || fail "nothing was run on $NAME yet; start with '$0 run --name=$NAME -- ...'"
}

start_run() {
  local kind module count variables=() worker workers=1
  need_run
  kind=${last_run[0]} module=${last_run[1]} count=${last_run[2]}
  arguments=(${last_run[@]+"${last_run[@]:3+count}"})
  if [ "$count" -gt 0 ]; then send_environment "${last_run[@]:3:count}" || return; fi
  if [ "$kind" = run ]; then
    on_workers all bash "$worker_script" start python -m "$module" ${arguments[@]+"${arguments[@]}"}
    return
  fi
  ask "$(usual_workers)" gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format='value(networkEndpoints.len())' ||
    { say "gcloud cannot say how many workers $NAME has: ${said##*$'\n'}"; return 1; }
  workers=$answer
  # A host of a slice of several waits for the others, unless it is told that it is alone with its
  # chips: four, in every slice of several hosts.
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

# How the run is, over all workers, in $outcome: bare (one is not set up), idle, running, torn (some
# ended in error while others go on, which then wait for them in vain) or the decisive exit code.
look() {
  local kind state code running=0 idle=0 codes="" wanted
  ask "worker assumed $assumed_run" gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all \
    ${ssh_flags[@]+"${ssh_flags[@]}"} --command="$status_command" || return
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
    if [ "${last_run[0]:-}" = run ] && [ -n "${codes//[ 0]/}" ]; then outcome=torn; fi
    return
  fi
  outcome=idle
  if [ "$idle" -gt 0 ] || [ -z "$codes" ]; then return; fi
  # Wrong input and a loss that is not finite are final. Of a crash the other workers end in want of
  # it (69), or saved where they were stopped (75), so that a crash goes before these.
  for wanted in 2 3; do
    case "$codes" in *" $wanted "*) outcome=$wanted; return ;; esac
  done
  for code in $codes; do
    outcome=$code
    case "$code" in 0 | 4 | 69 | 75) ;; *) return ;; esac
  done
  outcome=0
  for wanted in 69 75 4; do
    case "$codes" in *" $wanted "*) outcome=$wanted; return ;; esac
  done
}

# Gives up after MAX_FAILURES.
back_off() { # COUNT WHAT [EXIT_CODE]
  [ "$1" -lt "$MAX_FAILURES" ] || fail "$2; giving up after $1 failures (MAX_FAILURES)" "${3:-1}"
  wait_longer "$1" "$2"
}

# Waits longer after each failure in a row.
wait_longer() { # COUNT WHAT
  local delay=$BACKOFF_SECONDS i
  for ((i = 1; i < $1 && delay < 900; i++)); do delay=$((delay * 2)); done
  if [ "$delay" -gt 900 ]; then delay=900; fi
  say "$2; again in $delay s"
  pause "$delay"
}

keep() {
  local failures=0 crashes=0 torn=0 unmade=0 since=$SECONDS
  need_run
  while :; do
    not_made=0
    if ! revive || ! look; then
      # Spot VMs may be had tomorrow.
      if [ "$not_made" = 1 ]; then
        unmade=$((unmade + 1))
        wait_longer "$unmade" "$NAME cannot be made"
        continue
      fi
      failures=$((failures + 1))
      back_off "$failures" "$NAME cannot be reached or made"
      continue
    fi
    unmade=0
    case "$outcome" in
      0) say "$NAME has finished"; return 0 ;;
      2 | 3 | 4) fail "the run on $NAME ended with exit code $outcome, which a restart does not mend; see '$0 logs'" "$outcome" ;;
      running)
        torn=0 failures=0
        # By then it has saved, so that what ends it next is not what ended it before.
        if [ $((SECONDS - since)) -ge "$LASTING_SECONDS" ]; then crashes=0; fi
        pause "$POLL_SECONDS"
        continue ;;
      torn)
        torn=$((torn + 1))
        if [ "$torn" -ge 3 ]; then on_workers all bash "$worker_script" stop 30 || true; torn=0; fi
        pause "$POLL_SECONDS"
        continue ;;
      75) crashes=0; say "$NAME was preempted and has saved; starting again" ;;
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
  [ -n "$folder" ] || fail "which folder? no run with a MODEL_DIR is known; pass --model_dir=DIR"
  OUT=${OUT:-runs/$(basename "$folder")}
  call mkdir -p "$OUT"
  case "$folder" in
    gs://*) call gcloud storage rsync "$folder" "$OUT" --recursive --exclude='(^|/)checkpoints/.*' ;;
    *)
      on_workers 0 bash "$worker_script" pack "$folder"
      call gcloud compute tpus tpu-vm scp "$NAME:stepdistill/results.tar.gz" "$OUT/results.tar.gz" \
        "${where[@]}" --worker=0 ${ssh_flags[@]+"${ssh_flags[@]}"}
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
    call gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all \
      ${ssh_flags[@]+"${ssh_flags[@]}"} --command="$status_command"
  fi
}

confirm_delete() {
  local reply=""
  if [ "$YES" != 1 ] && [ "$DRY_RUN" != 1 ]; then
    printf 'delete %s in %s, with all that its disks hold? [y/N] ' "$NAME" "$ZONE" >&2
    read -r reply || true
    case "$reply" in y | Y | yes) ;; *) fail "not deleted: answer y, or pass --yes" ;; esac
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
      fail "$subcommand: no subcommand; the nearest is $(nearest "$subcommand" $COMMANDS) (of $COMMANDS)" ;;
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
  # A MODEL_DIR or OUT of the environment may be meant for another program.
  MODEL_DIR="" OUT=""
  # What a dry run takes a VM and its run to be.
  assumed_vm=PREEMPTED assumed_run="idle -"
  read_arguments "$@"
  need_numbers
  if [ "$DRY_RUN" = 0 ] && ! command -v gcloud >/dev/null; then
    fail "gcloud is not on PATH: install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install)"
  fi
  load_state
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
    resume) need_run && revive && start_run ;;
    keep) keep ;;
    fetch) fetch_results ;;
    delete) confirm_delete ;;
  esac
}

main "$@"
