#!/usr/bin/env bash
# From a clone to a ranking of data mixtures, on CPU, with no download but the packages.
#
#     bash launch/demo.sh                    the whole demo
#     bash launch/demo.sh --quick            a smaller one
#     bash launch/demo.sh --data DIR --workdir DIR     your text, a subfolder a domain
#
# Writes report.html and report.json into the working folder.

set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
jaxlab_install ""
exec "$JAXLAB_BIN/jaxlab" demo "$@"
