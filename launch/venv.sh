#!/usr/bin/env bash
# Sourced by the other scripts: a virtual environment with this project in it.
#
#     source launch/venv.sh
#     jaxlab_install test oracles     # extras of pyproject.toml; "" for none
#     "$JAXLAB_BIN/python" ...
#
# Needs Python 3.11 or newer and the package index. The environment is .venv beside
# this folder, or JAXLAB_VENV; JAXLAB_PYTHON names the Python that makes it. It is brought up to date only when pyproject.toml, the
# extras or the folder changed: their hash is kept inside. JAX comes as it does by
# default, for CPU: `pip install -e '.[cuda]'` or `'.[tpu]'` is left to the user.

# -P and -I below: no module beside whoever starts a script is imported, of whatever name.

set -euo pipefail

JAXLAB_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
JAXLAB_VENV="${JAXLAB_VENV:-$JAXLAB_ROOT/.venv}"
[[ "$JAXLAB_VENV" == /* ]] || JAXLAB_VENV="$PWD/$JAXLAB_VENV"
JAXLAB_BIN="$JAXLAB_VENV/bin"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

jaxlab_install() {
  [[ -x "$JAXLAB_BIN/python" ]] || _jaxlab_make_venv
  _jaxlab_is_new_enough "$JAXLAB_BIN/python" ||
    _jaxlab_fail "$JAXLAB_VENV has Python older than 3.11; remove it, or set JAXLAB_VENV"
  local extra stamp state
  stamp="$JAXLAB_VENV/.jaxlab-installed"
  state="$(_jaxlab_state)"
  # First line: what was installed; the others: the extras that came with it.
  if [[ ! -f "$stamp" || "$(head -n 1 "$stamp")" != "$state" ]]; then
    rm -f "$stamp"
    _jaxlab_pip "" "$@"
    { echo "$state"; printf '%s\n' "" "$@"; } >"$stamp"
  fi
  for extra in "$@"; do
    if ! tail -n +2 "$stamp" | grep -qxF -- "$extra"; then
      _jaxlab_pip "$extra"
      echo "$extra" >>"$stamp"
    fi
  done
}

# Installs the project, editable, with the extras given ("" is none).
_jaxlab_pip() {
  local extras
  extras="$(IFS=,; echo "$*")"
  extras="${extras#,}"
  echo "==> installing jaxlab[$extras] into $JAXLAB_VENV (minutes the first time)"
  if [[ ",$extras," == *,oracles,* ]] && ! "$JAXLAB_BIN/python" -P -c "import torch" 2>/dev/null; then
    # The exact version, so that an index which carries a build for CPU under it gives
    # that one; asking for the newest may pull gigabytes of CUDA, for tests that run on
    # CPU. A torch that is there already is kept: install your own first if you like.
    "$JAXLAB_BIN/python" -P -m pip install "torch==2.13.0"
  fi
  "$JAXLAB_BIN/python" -P -m pip install --editable "$JAXLAB_ROOT${extras:+[$extras]}"
}

_jaxlab_make_venv() {
  local python
  for python in ${JAXLAB_PYTHON:+"$JAXLAB_PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 ""; do
    [[ -z "$python" ]] && _jaxlab_fail "Python 3.11 or newer is needed; found $(
      python3 --version 2>&1 || true)"
    _jaxlab_is_new_enough "$python" && break
  done
  echo "==> making $JAXLAB_VENV with $("$python" --version)"
  if ! "$python" -P -m venv "$JAXLAB_VENV"; then
    rm -f "$JAXLAB_BIN/python"  # half made: the next start tries again
    _jaxlab_fail "$python -m venv failed; on Debian and Ubuntu: apt install python3-venv"
  fi
}

_jaxlab_is_new_enough() {
  "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

_jaxlab_state() {
  "$JAXLAB_BIN/python" -P - "$JAXLAB_ROOT" <<'PYTHON'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
text = (root / "pyproject.toml").read_bytes() + str(root).encode()
print(hashlib.sha256(text).hexdigest())
PYTHON
}

_jaxlab_fail() {
  echo "jaxlab: $1" >&2
  exit 2
}
