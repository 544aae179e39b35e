#!/bin/sh
# Make .venv hold what the requirements files pin; do nothing when it already does.
#
#   tools/venv.sh PYTHON demo    requirements.txt
#   tools/venv.sh PYTHON dev     requirements-dev.txt on top of it
#
# .venv/stamp says what .venv holds. It is removed before any change and written last, so a killed
# run leaves none. Its first line names the interpreter, the place of .venv and the checksum of
# requirements.txt; its second, once the dev tools are in, the checksum of requirements-dev.txt.
# A .venv that its stamp does not vouch for is built anew.
set -eu
python=$1
wanted=$2
cd "$(dirname "$0")/.."

fail() {
    echo "$*" >&2
    exit 1
}

needs_python() {
    fail "PYTHON=$python: found $1; needed: Python 3.11 or newer with venv and ensurepip" \
        "(for example: make PYTHON=python3.12 demo)"
}

# pip_install FILE MODULES: compiling every installed file would double the time, so pip compiles
# none and importing MODULES compiles those in use. -I keeps the caller's PYTHON* settings out.
pip_install() {
    .venv/bin/python -I -m pip --disable-pip-version-check install -qq --no-compile -r "$1" &&
        .venv/bin/python -I -c "import $2" ||
        fail "Setting up .venv failed at $1; is the package index reachable? To see more:" \
            ".venv/bin/python -m pip install -r $1"
}

interpreter=$("$python" -I -S -c '
import sys
print("%d.%d.%d" % sys.version_info[:3] + " of " + sys.base_prefix)
sys.exit(sys.version_info < (3, 11))' 2>/dev/null) || {
    found=$("$python" --version 2>&1) || found="no Python that runs"
    needs_python "$found"
}

# Two makes at once: the second waits for the first.
exec 9<tools/venv.sh
if command -v flock >/dev/null && ! flock -n 9; then
    echo "Waiting for another make that is setting up .venv ..."
    flock 9
fi

base="$interpreter in $(pwd -P)/.venv with $(cksum <requirements.txt)"
dev="dev $(cksum <requirements-dev.txt)"
has_base=$(sed -n 1p .venv/stamp 2>/dev/null || true)
has_dev=$(sed -n 2p .venv/stamp 2>/dev/null || true)

if [ "$has_base" != "$base" ] || ! .venv/bin/python -I -S -c '' 2>/dev/null ||
    { [ "$wanted" = dev ] && [ -n "$has_dev" ] && [ "$has_dev" != "$dev" ]; }; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        needs_python "Python $interpreter without venv or ensurepip"
    echo "Setting up .venv (about a minute) ..."
    rm -f .venv/stamp
    "$python" -m venv --clear .venv
    pip_install requirements.txt \
        "jax, flax.linen, optax, chex, matplotlib.figure, orbax.checkpoint, tokenizers"
    echo "$base" >.venv/stamp
    has_dev=
fi

if [ "$wanted" = dev ] && [ -z "$has_dev" ]; then
    echo "Adding the test and lint tools to .venv ..."
    rm .venv/stamp
    pip_install requirements-dev.txt "pytest, xdist, beartype, hypothesis"
    printf '%s\n' "$base" "$dev" >.venv/stamp
fi
