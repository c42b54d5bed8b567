#!/usr/bin/env bash
# Sourced by the scripts that launch: commands are shown before they run.
#
#     source launch/shown.sh
#     step rm -r "my folder"      # prints + rm -r 'my folder', runs it unless $dry_run
#
# What is printed can be pasted into a shell, a line a command. Works with bash 3.2.

set -euo pipefail
dry_run="${dry_run:-}"

# The comment at the top of the script, without its #.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

fail() { # MESSAGE [CODE]
  echo "${0##*/}: $1" >&2
  exit "${2:-2}"
}

say() { echo "# $*"; }

# --some-flag=VALUE or --some-flag VALUE, to the variable some_flag.
set_flag() {
  local variable="${1#--}"
  [[ -n "$2" ]] || fail "$1 needs a value"
  printf -v "${variable//-/_}" '%s' "$2"
}

# Arguments as a shell would read them again.
quoted() {
  local argument out=""
  for argument in "$@"; do
    if [[ ! "$argument" =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      argument="'$(printf '%s' "$argument" | sed "s/'/'\\\\''/g")'"
    fi
    out+=" $argument"
  done
  printf '%s\n' "${out# }"
}

# Shows a command and runs it; where it fails, the script ends with its exit code.
step() {
  local code=0
  echo "+ $(quoted "$@")"
  [[ -z "$dry_run" ]] || return 0
  "$@" || code=$?
  ((code == 0)) || fail "exit code $code from: $(quoted "$@")" "$code"
}

# A dry run starts nothing: it shows what it can, and says what would be refused.
refuse() {
  [[ -n "$dry_run" ]] || fail "$1"
  echo "${0##*/}: would refuse: $1" >&2
}

# FOLDER WHERE jaxlab VERB ...: the command, in one line, that will run in FOLDER. What
# jaxlab would refuse (a verb, a flag, a variant, a setting) is found here, before a machine
# is paid for, if there is a Python that can ask it; and so is what only this machine has.
# WHERE: here, new (a machine that is made for it), there (one that was).
check_command() {
  local folder="$1" where="$2" from="$PWD" python message code
  shift 2
  [[ "${1:-}" == jaxlab && $# -gt 1 ]] || fail "a command is needed: -- jaxlab train --config=..."
  [[ "$*" != *$'\n'* ]] || fail "the command must be one line"
  for python in "${JAXLAB_VENV:-$root/.venv}/bin/python" python3; do
    type "$python" >/dev/null 2>&1 || continue
    code=0
    message="$(cd "$folder" && PYTHONPATH="$root" PYTHONSAFEPATH=1 "$python" -c "$ask_jaxlab" "$where" "$from" "${@:2}" 2>&1)" || code=$?
    ((code != 2)) || { refuse "${message##*$'\n'}" && return 0; }
    ((code)) || { sed -n 's/^--/# --/p' <<<"$message" && return 0; }
  done
}
ask_jaxlab='import sys; from jaxlab import cli; sys.exit(cli.check(sys.argv[3:], *sys.argv[1:3]))'
