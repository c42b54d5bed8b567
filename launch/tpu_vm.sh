#!/usr/bin/env bash
# Trains on a Cloud TPU: makes it, copies this checkout, installs, runs, survives.
#
#     on="--name=mine --zone=us-west4-a --queued"
#     what="--type=v5litepod-16 --spot"
#     bash launch/tpu_vm.sh create $on $what
#     bash launch/tpu_vm.sh run $on -- jaxlab train --config=configs/olmo.py:1b \
#       --workdir=gs://BUCKET/runs/1b --config.data.source=embedded
#     bash launch/tpu_vm.sh logs $on        follows worker 0; --worker=2 another one
#     bash launch/tpu_vm.sh status $on
#     bash launch/tpu_vm.sh stop $on        ends the command, which saves first
#     bash launch/tpu_vm.sh delete $on
#
#     bash launch/tpu_vm.sh watch $on $what -- jaxlab train ...     all that, unattended
#
# create   makes the TPU, or takes the one of that name, and waits until it is ready
# run      copies this checkout to all workers, installs it and starts the command there,
#          in the background: it outlives the connection. Its log is on each worker
# watch    create and run, unless the command runs already; then looks after it. Makes a
#          preempted TPU again and starts the command again, which resumes by itself, as
#          --workdir is in a bucket. Once it has succeeded, deletes the TPU (--keep does
#          not); after a failure the TPU stays, for you to look at. Start it in tmux
#
# --name, --zone    of the TPU; always needed
# --project         default: that of gcloud
# --type            v5litepod-16, v5p-64, v6e-256, v4-32 ...; for create and watch
# --version         of the TPU's software; default: Google's for that type
# --spot            cheap, and taken away at any time: for watch
# --queued          waits in a queue while there is no such TPU to have; without it create
#                   fails then. Give it to every verb
# --pass-env=NAME   hands a variable of yours, e.g. HF_TOKEN, to the command, in a file
#                   that only you can read; its value is never shown. May be repeated
# --dry-run         shows the commands and runs none; needs no gcloud
#
# The TPU's service account must be allowed to write to the bucket. Every command is shown
# before it runs, after a +; one that is asked again and again, once. watch looks every
# JAXLAB_POLL_SECONDS (30) and gives up after five failures in a row.

set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/shown.sh
source "$root/launch/shown.sh"
# shellcheck source=launch/tpu_workers.sh
source "$root/launch/tpu_workers.sh"
poll_seconds="${JAXLAB_POLL_SECONDS:-30}"
verb="" name="" zone="" project="" type="" version="" worker=0 spot="" queued="" keep=""
secrets=() command=()
scratch=/tmp/jaxlab.XXXXXX # a folder of our own, unless --dry-run
shown="" answer="" state="" said="" known="" made=""

parse() {
  case "${1:-}" in
    create | run | logs | status | watch | stop | delete) verb="$1" ;;
    -h | --help) usage && exit 0 ;;
    *) fail "unknown verb '${1:-}'; use create, run, logs, status, watch, stop or delete" ;;
  esac
  shift
  while (($#)); do
    case "$1" in
      --name | --zone | --project | --type | --version | --worker | --pass-env)
        (($# > 1)) || fail "$1 needs a value"
        set -- "$1=$2" "${@:3}"
        continue
        ;;
      --name=* | --zone=* | --project=* | --type=* | --version=* | --worker=*)
        set_flag "${1%%=*}" "${1#*=}"
        ;;
      --pass-env=*) secrets+=("${1#*=}") ;;
      --spot | --queued | --keep | --dry-run) set_flag "$1" 1 ;;
      -h | --help) usage && exit 0 ;;
      --) shift && command=("$@") && break ;;
      *) fail "unknown flag ${1%%=*}; see --help (the command comes after --)" ;;
    esac
    shift
  done
}

check() {
  local secret
  [[ "$name" =~ ^[a-z][-a-z0-9]*$ ]] || fail "--name is needed: lower-case letters, digits, -"
  [[ "$zone" =~ ^[-a-z0-9]+$ ]] || fail "--zone is needed, e.g. --zone=us-west4-a"
  for secret in ${secrets[@]+"${secrets[@]}"}; do
    [[ "$secret" =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "--pass-env takes a variable's name only"
    [[ -n "${!secret+set}" ]] || fail "--pass-env=$secret: that variable is not set here"
  done
  case "$verb" in create | watch) check_type ;; esac
  case "$verb" in
    run) check_command "$root" there ${command[@]+"${command[@]}"} ;;
    watch) check_command "$root" new ${command[@]+"${command[@]}"} ;;
    *) ((${#command[@]} == 0)) || fail "$verb takes no command" ;;
  esac
  [[ "$verb" != watch || "${command[*]}" == *"--workdir"[\ =]"gs://"* ]] ||
    fail "watch needs --workdir=gs://...: the disk of a TPU is lost with it"
  [[ -n "$dry_run" ]] || type gcloud >/dev/null 2>&1 ||
    fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
}

check_type() {
  [[ -n "$type" ]] || fail "--type is needed, e.g. --type=v5litepod-16"
  [[ -z "$version" ]] || return 0
  case "$type" in # https://cloud.google.com/tpu/docs/runtimes
    v5lite*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    *) fail "--version is not known for --type=$type; give it" ;;
  esac
}

# Like `step`, for a question: the output goes to `answer`, a failure to the caller.
ask() {
  local line
  line="+ $(quoted "$@")"
  [[ "$shown" == *"$line"$'\n'* ]] || echo "$line"
  shown+="$line"$'\n'
  answer=""
  [[ -n "$dry_run" ]] || answer="$("$@" 2>"$scratch/stderr")"
}

tpu() { # step|ask tpu-vm|queued-resources VERB ...
  local how="$1" what="$2" action="$3"
  shift 3
  "$how" gcloud compute tpus "$what" "$action" "$@" "--zone=$zone" \
    ${project:+"--project=$project"}
}

# ------------------------------------------------------------------ the TPU

# `state`: READY, none, lost, or another word of Google's.
look() {
  local code=0 what=tpu-vm field=state
  [[ -z "$queued" ]] || what=queued-resources field=state.state
  tpu ask "$what" describe "$name" "--format=value($field)" || code=$?
  state="$answer"
  if ((code)) && ! grep -qiE 'not.?found' "$scratch/stderr"; then
    cat "$scratch/stderr" >&2
    fail "exit code $code from: gcloud compute tpus $what describe $name" "$code"
  fi
  case "$state" in
    "") state=none ;;
    ACTIVE | READY) state=READY known=1 ;;
    PREEMPTED | SUSPENDED | TERMINATED) state="lost ($state)" ;;
  esac
}

# Makes what is not there, again what is lost, and waits until it is ready.
create() {
  local told=""
  made=""
  while look && [[ "$state" != READY ]]; do
    [[ "$state" == "$told" ]] || say "$name is ${state/none/not there}"
    told="$state"
    case "$state" in
      lost*) delete && make ;;
      none)
        [[ -z "$known$made" ]] || fail "$name was deleted by somebody else" 1
        make
        ;;
      FAILED | STOPPED) fail "$name is $state: find out why, delete it, create it again" 1 ;;
    esac
    [[ -z "$dry_run" ]] || break
    sleep "$poll_seconds"
  done
  [[ -n "$known" && -z "$made" ]] || say "$name is ready${dry_run:+ when describe says so}"
}

make() {
  local size="--accelerator-type=$type"
  made=1
  if [[ -n "$queued" ]]; then
    tpu step queued-resources create "$name" "--node-id=$name" "$size" \
      "--runtime-version=$version" ${spot:+--spot}
  else
    tpu step tpu-vm create "$name" "$size" "--version=$version" ${spot:+--spot}
  fi
}

delete() {
  if [[ -n "$queued" ]]; then
    tpu step queued-resources delete "$name" --force --quiet
  else
    tpu step tpu-vm delete "$name" --quiet
  fi
}

# ------------------------------------------------------------------ unattended

# 130 and 143 are a command that a signal ended: it has saved, and goes on.
# A connection that fails, or a command that is gone, may be the first sign of a
# preemption: neither ends the watch, for the next look at the TPU tells.
watch() {
  local misses=0 starts=0 started="" code
  while :; do
    create
    [[ -z "$made" ]] || started=""
    code=0
    hear || code=$?
    [[ "$said" != running ]] || starts=0
    if ((code == 0)) && [[ "$said" =~ ^(gone|130|143)$ || -z "$started" && "$said" != running ]]; then
      ((++starts <= 5)) || fail "the command ended early five times in a row; see logs" 1
      (again) || code=$?
      said=running
    fi
    [[ -z "$dry_run" ]] || break
    if ((code)); then
      misses=$((misses + 1))
      say "exit code $code; looking again"
      ((misses < 5)) || fail "$name failed five times in a row" "$code"
    elif [[ "$said" == running ]]; then
      misses=0 started=1
    else
      break
    fi
    sleep "$poll_seconds"
  done
  finish
}

# Where one host restarted, the others may still wait for it.
again() {
  [[ -z "$started" ]] || stop
  run
}

finish() {
  if [[ -n "$dry_run" ]]; then
    say "every $poll_seconds s: describe, and the first ssh. If the TPU is preempted:"
    delete
    say "... and all of the above again. At last, when the command has succeeded:"
  elif [[ "$said" == stopped ]]; then
    fail "the command was stopped; $name is still there: watch again, or delete it" 1
  elif [[ "$said" != 0 ]]; then
    fail "the command ended with exit code $said; $name is still there: see logs, delete it" "$said"
  else
    say "the command has succeeded"
  fi
  [[ -n "$keep" ]] || delete
}

parse "$@"
check
if [[ -z "$dry_run" ]]; then
  umask 077
  scratch="$(mktemp -d "${TMPDIR:-/tmp}/jaxlab.XXXXXX")"
  trap 'rm -rf "$scratch"' EXIT
fi
case "$verb" in
  *) "$verb" ;;
esac
