#!/usr/bin/env bash
# Sets everything up and runs the tests.
#
#     bash launch/test.sh                          all that is quick and needs no peer
#     bash launch/test.sh --oracles                also what is slow, and against live
#                                                torch, transformers, mergekit
#     bash launch/test.sh tests/merge/test_linear.py -x   any pytest arguments
#
# JAXLAB_TEST_DATA names a folder of real data; tests that need it are skipped without
# it, and what was skipped is listed at the end. JAXLAB_TEST_WORKERS is the number of
# processes (0: none but this one).

set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

extras=(test)
select=(-m "not oracle and not slow")
if [[ "${1:-}" == --oracles ]]; then
  shift
  extras=(test oracles)
  select=()
  export JAXLAB_TEST_OPTIMIZED=1
fi
jaxlab_install "${extras[@]}"

cd "$JAXLAB_ROOT"
# By files: the tests of one share its fixtures and its compiled programs.
exec "$JAXLAB_BIN/python" -m pytest -n "${JAXLAB_TEST_WORKERS:-2}" --dist loadfile -rsfE \
  ${select[@]+"${select[@]}"} "$@"
