#!/usr/bin/env bash
# Makes the environment: a .venv in the checkout with exact versions. Quick when nothing has changed.
# First time: about 12 minutes, most of it mmcv-full's C++; pip keeps the wheel, so the next checkout takes about 3.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }

PYTHON=${PYTHON:-python3.11}
command -v "$PYTHON" >/dev/null || fail "Python 3.11 is needed, but '$PYTHON' was not found; install it (Debian: python3.11 python3.11-venv python3.11-dev) or set PYTHON."
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || fail "Python 3.11 is needed, but '$PYTHON' is $("$PYTHON" -V 2>&1); set PYTHON to a 3.11."
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || fail "Python's venv module is needed, but '$PYTHON' lacks it (Debian: apt-get install python3.11-venv)."
command -v c++ >/dev/null || command -v g++ >/dev/null || fail "A C++ compiler is needed to build mmcv-full, but none was found (Debian: apt-get install g++)."
header=$("$PYTHON" -c 'import sysconfig, os; print(os.path.join(sysconfig.get_paths()["include"], "Python.h"))')
[ -f "$header" ] || fail "Python's C headers are needed to build mmcv-full, but $(basename "$header") was not found (Debian: apt-get install python3.11-dev)."

stamp=.venv/.setup-stamp
wanted=$(cat scripts/setup.sh requirements/*.txt pyproject.toml | sha256sum | cut -d' ' -f1)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

say() { echo "setup: $*"; }
# What build backends and legacy packages warn about is nothing that a user could act on.
export PYTHONWARNINGS=ignore
pip() { .venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint requirements/constraints.txt "$@"; }

[ -x .venv/bin/python ] || { say "creating .venv"; "$PYTHON" -m venv .venv; }
rm -f "$stamp"
say "torch and build tools"
pip -r requirements/build.txt
say "Ray, Optuna, MLflow and the rest"
pip --no-build-isolation --editable '.[dev]'
if .venv/bin/python -c 'import torch, mmcv._ext' 2>/dev/null; then :; else
    say "mmcv-full (compiles for about 10 minutes, once; pip keeps the wheel)"
    # Its dependency opencv-python would bring numpy 2 and clash with the headless build: --no-deps.
    MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} pip --no-deps --no-build-isolation mmcv-full==1.7.2
fi
say "OpenMMLab packages"
pip --no-deps --no-build-isolation -r requirements/openmmlab.txt
.venv/bin/python -c 'import mmcv._ext' || fail "mmcv-full was built for another torch; remove it from pip's cache (pip cache remove mmcv_full) and run again."
echo "$wanted" > "$stamp"
say "done"
