#!/bin/sh
# Installs denoised into .venv when needed, then serves on http://127.0.0.1:8000.
# Arguments go to `denoised serve`: `sh serve.sh --help` lists them.
set -eu
cd "$(dirname "$0")"
# shellcheck source=.ci/venv.sh
. ./.ci/venv.sh
install_into_venv worker
exec .venv/bin/denoised serve "$@"
