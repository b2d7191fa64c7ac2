#!/bin/sh
# Creates the virtual environment $VENV with $PYTHON; called by the Makefile.
# Installs python3-venv through apt where it is absent and root or sudo allows it.
set -eu

fail() {
    echo "$1" >&2
    exit 1
}

command -v "$PYTHON" >/dev/null 2>&1 ||
    fail "There is no '$PYTHON'; install Python 3.11 or newer (apt-get install python3), or name one: make PYTHON=/path/to/python3"

version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "'$PYTHON' is Python $version, expected 3.11 or newer; name a newer one: make PYTHON=/path/to/python3"

# Debian takes ensurepip out of python3 and puts it into python3-venv.
if ! "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    package="python$version-venv"
    command -v apt-get >/dev/null 2>&1 ||
        fail "'$PYTHON' cannot create virtual environments (the module ensurepip is absent); install it and try again."
    if [ "$(id -u)" -eq 0 ]; then
        sudo=""
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        sudo="sudo -n"
    elif command -v sudo >/dev/null 2>&1 && [ -t 0 ]; then
        sudo="sudo"
    else
        fail "'$PYTHON' cannot create virtual environments; run 'apt-get install $package' as root, then try again."
    fi
    echo "Installing $package ..."
    { $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null; } ||
        fail "apt-get could not install $package; install it by hand, then try again."
fi

# What is there and works is kept; what an interrupted creation left is made again.
if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    "$PYTHON" -m venv --clear "$VENV" || fail "'$PYTHON' could not create $VENV."
fi
