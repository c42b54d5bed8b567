#!/usr/bin/env bash
# Sourced by tpu_vm.sh: what happens on the workers of a TPU.
#
# Paths are relative to the home of each worker. jaxlab/ is this checkout; jaxlab-run/ has
# command.sh, its log, the number of its process group (pid), at the end its exit code.
#
# Uses the variables of tpu_vm.sh.
# shellcheck disable=SC2154

# shellcheck disable=SC2016  # all this is expanded there, not here
{
  is_running='kill -0 -- "-$(cat jaxlab-run/pid 2>/dev/null)" 2>/dev/null'
  prepare="mkdir -p -m 700 jaxlab-run && if $is_running; then"
  prepare+=' echo "a command is running; stop it first" >&2; exit 1; fi'
  # The TPU's Ubuntu has Python 3.10 and jax needs 3.11: uv brings one.
  install='mkdir -p jaxlab && tar -xzf jaxlab-run/jaxlab.tgz -C jaxlab && cd jaxlab'
  install+=' && { test -x .venv/bin/python || { python3 -m pip install --user uv'
  install+=' && python3 -m uv venv --seed --python=3.12 .venv; }; }'
  install+=' && source launch/venv.sh && jaxlab_install tpu gcs'
  start='cd jaxlab && rm -f ../jaxlab-run/exit && { setsid nohup bash'
  start+=' ../jaxlab-run/command.sh >>../jaxlab-run/log 2>&1 </dev/null &'
  start+=' echo $! >../jaxlab-run/pid; }'
  report='echo "jaxlab: $(cat jaxlab-run/exit 2>/dev/null ||'
  report+=" { $is_running && echo running; } || echo gone)\""
  stop="if $is_running; then echo stopped >jaxlab-run/exit;"
  stop+=' kill -TERM -- "-$(cat jaxlab-run/pid)"; fi;'
  stop+=" for _ in \$(seq 300); do $is_running || exit 0; sleep 1; done;"
  stop+=' echo "still running after 300 s" >&2; exit 1'
}

on_workers() { tpu "$1" tpu-vm ssh "$name" --worker=all "--command=$2"; }

run() {
  on_workers step "$prepare"
  say "$scratch/command.sh, mode 0600, for all workers:"
  command_lines '***' | sed 's/^/#     /'
  [[ -n "$dry_run" ]] || command_lines >"$scratch/command.sh"
  step tar -czf "$scratch/jaxlab.tgz" --exclude=__pycache__ -C "$root" \
    LICENSE README.md configs jaxlab launch pyproject.toml
  tpu step tpu-vm scp "$scratch/command.sh" "$scratch/jaxlab.tgz" "$name:jaxlab-run/" \
    --worker=all
  on_workers step "$install"
  on_workers step "$start"
  say "the command runs; to follow it: bash launch/tpu_vm.sh logs --name=$name" \
    "--zone=$zone${project:+ --project=$project}"
}

command_lines() { # [what to show instead of secrets]
  local secret
  echo "export JAXLAB_MULTIHOST=1" # see jaxlab/core/process.py
  for secret in ${secrets[@]+"${secrets[@]}"}; do
    echo "export $secret=${1:-$(printf '%q' "${!secret}")}"
  done
  echo ".venv/bin/$(quoted "${command[@]}")"
  # shellcheck disable=SC2016
  echo 'echo $? >../jaxlab-run/exit'
}

# `said`: what all workers together say: stopped, gone, running, or an exit code.
hear() {
  local code=0 words
  on_workers ask "$report" || code=$?
  [[ -n "$answer$dry_run" ]] || ((code)) || code=1 # says nothing
  words=" $(sed -n 's/^jaxlab: //p' <<<"$answer" | sort -rn | tr '\n' ' ')"
  case "$words" in
    *" stopped "*) said=stopped ;;
    *" gone "*) said=gone ;;
    *" running "*) said=running ;;
    *) said="${words# }" said="${said%% *}" ;; # the largest
  esac
  return "$code"
}

status() {
  look
  if [[ -z "$dry_run" ]]; then
    say "$name is ${state/none/not there}"
    [[ "$state" == READY ]] || return 0
  fi
  on_workers step "hostname; $report; tail -n 1 jaxlab-run/log"
}

logs() {
  tpu step tpu-vm ssh "$name" "--worker=$worker" "--command=tail -n 100 -F jaxlab-run/log"
}

stop() { on_workers step "$stop"; }
