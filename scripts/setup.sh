#!/bin/sh
# Make the virtual environment and install the package with the extras named,
# e.g. `sh scripts/setup.sh book,test`. Does nothing when that is done already.
# VENV is its folder (.venv), PYTHON the interpreter to make it with.
set -eu
cd "$(dirname "$0")/.."
extras=$1
venv=${VENV:-.venv}
need_gb=6

advise() {
    echo "$*" >&2
    exit 1
}

wanted=$({ cat pyproject.toml constraints.txt scripts/setup.sh; pwd; } | cksum)
stamp=$venv/installed-$(echo "$extras" | tr , -)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

if [ ! -x "$venv/bin/python" ] || [ ! -f "$stamp" ]; then
    free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
    if [ "$free_kb" -lt $((need_gb * 1024 * 1024)) ]; then
        advise "The environment needs up to $need_gb GB of disk and $((free_kb / 1024 / 1024)) GB are free here. Free some, or name a roomier place: make VENV=/path/to/folder"
    fi
fi

if [ ! -x "$venv/bin/python" ]; then
    python=
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            python=$name
            break
        fi
    done
    [ -n "$python" ] ||
        advise "Python 3.11 or newer is needed and was not found (tried: ${PYTHON:-python3, python3.11 to python3.14}). Install one, e.g. sudo apt install python3 python3-venv, or name it: make PYTHON=/path/to/python3"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        advise "$python has no venv module. Install it, e.g. sudo apt install python3-venv, and run the same command again."
    echo "Making the environment in $venv ..."
    "$python" -m venv "$venv"
fi

echo "Installing into $venv (a few minutes the first time) ..."
pip() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt "$@"
}
# torch alone and first: its size is most of the wait, and the pin alone decides it.
pip torch
pip --editable ".[$extras]"
echo "$wanted" >"$stamp"
