# Sourced by serve.sh and test.sh: makes .venv and installs into it what pyproject.toml and constraints.txt say.
#
# Sourced from the repository root. `install_into_venv EXTRAS` does nothing when EXTRAS (or the wider set of test.sh)
# are already installed from these very files; an install that was interrupted is never taken for a finished one.
# PYTHON=/path/to/python chooses the interpreter.
# shellcheck shell=sh

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

# 0 when $1 is a Python for which every pinned dependency is published: 3.11 to 3.14.
is_usable_python() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_usable_python "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.11, 3.12, 3.13 or 3.14."
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3.14 python3 python; do
        if is_usable_python "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    found=$(python3 --version 2>/dev/null || echo 'no python3 at all')
    fail "denoised needs Python 3.11, 3.12, 3.13 or 3.14; this machine has $found." \
        "Debian 12 and later, Ubuntu 24.04 and later: apt install python3 python3-venv" \
        "macOS: brew install python@3.13" \
        "Another one: PYTHON=/path/to/python3.13 sh $0"
}

# 0 when .venv works: its Python and pip run, and the checkout was not moved since (programs in it have its path).
is_venv_sound() {
    [ -x .venv/bin/python ] && is_usable_python .venv/bin/python &&
        .venv/bin/python -m pip --version >/dev/null 2>&1 && grep -qF "$(pwd -P)/.venv" .venv/bin/activate
}

make_venv() {
    if is_venv_sound; then return; fi
    python=$(find_python) || exit 1
    echo "Making .venv with $("$python" --version) ..."
    rm -rf .venv
    "$python" -m venv .venv || {
        rm -rf .venv
        fail "" "$python cannot make a virtual environment (its words are above)." \
            "Debian and Ubuntu keep that part in a package of its own: apt install python3-venv"
    }
}

# What an install depends on: the two files, where the checkout lies (it is installed in place), and the interpreter.
fingerprint() {
    { cat pyproject.toml constraints.txt && pwd -P && .venv/bin/python -VV; } | cksum
}

install_into_venv() {
    make_venv
    wanted="$(fingerprint) $1"
    installed=$(cat .venv/denoised-installed 2>/dev/null || :)
    case $installed in
        "$wanted" | "$(fingerprint) worker,test") return ;;
    esac
    rm -f .venv/denoised-installed
    echo "Installing denoised into .venv (once, and again when its dependencies change; 1.3 GB and up) ..."
    if [ -t 1 ]; then quiet=; else quiet=--quiet; fi
    # shellcheck disable=SC2086 # no word at all when empty
    PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install $quiet -c constraints.txt -e ".[$1]" ||
        fail "" "pip could not install what denoised needs (its words are above)." \
            "It needs the Python package index, about 2 GB of disk, and a platform that PyTorch publishes for:" \
            "Linux on x86-64 or 64-bit ARM, or macOS on Apple silicon. Run this again to go on."
    printf '%s\n' "$wanted" >.venv/denoised-installed
}
