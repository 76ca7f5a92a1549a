#!/bin/sh
# Installs denoised and its test tools into .venv when needed, then runs every check. Fails if any of them fails.
# Arguments go to pytest: `sh test.sh tests/test_cli.py -k keys`.
# Two processes test side by side; `-n 0` keeps everything in one, for a debugger.
set -eu
cd "$(dirname "$0")"
# shellcheck source=.ci/venv.sh
. ./.ci/venv.sh
install_into_venv worker,test

failed=
run() {
    echo "== $*"
    program=$1
    shift
    ".venv/bin/$program" "$@" || failed="$failed $program"
}
run ruff check .
run ruff format --check .
run mypy
run lint-imports
run pytest -n 2 --dist worksteal "$@"
if [ -n "$failed" ]; then
    echo "Failed:$failed" >&2
    exit 1
fi
