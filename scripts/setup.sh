#!/usr/bin/env bash
# Makes the environment: a .venv in the checkout with exact versions. Quick when nothing has changed.
# DEVICE=cpu|cuda chooses the build of spconv and whether torch must reach a GPU; by default cuda where there is an NVIDIA
# driver. MMCV_OPS=1 also compiles mmcv's operators for the CPU (about ten minutes); nothing here needs them.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }

PYTHON=${PYTHON:-python3.11}
command -v "$PYTHON" >/dev/null || fail "Python 3.11 is needed, but '$PYTHON' was not found; install it (Debian: python3.11 python3.11-venv python3.11-dev) or set PYTHON."
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || fail "Python 3.11 is needed, but '$PYTHON' is $("$PYTHON" -V 2>&1); set PYTHON to a 3.11."
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || fail "Python's venv module is needed, but '$PYTHON' lacks it (Debian: apt-get install python3.11-venv)."
if [ -z "${DEVICE:-}" ]; then
    DEVICE=cpu
    if nvidia-smi -L >/dev/null 2>&1; then DEVICE=cuda; fi
fi
case $DEVICE in
    cpu) sparse="spconv cumm" other="spconv-cu126 cumm-cu126" ;;
    cuda) sparse="spconv-cu126 cumm-cu126" other="spconv cumm" ;;
    *) fail "DEVICE must be cpu or cuda, but is '$DEVICE'." ;;
esac
if [ "${MMCV_OPS:-0}" = 1 ]; then
    command -v c++ >/dev/null || command -v g++ >/dev/null || fail "A C++ compiler is needed for MMCV_OPS=1, but none was found (Debian: apt-get install g++)."
    header=$("$PYTHON" -c 'import sysconfig, os; print(os.path.join(sysconfig.get_paths()["include"], "Python.h"))')
    [ -f "$header" ] || fail "Python's C headers are needed for MMCV_OPS=1, but $(basename "$header") was not found (Debian: apt-get install python3.11-dev)."
fi

stamp=.venv/.setup-stamp
wanted=$( (cat scripts/setup.sh requirements/*.txt pyproject.toml; echo "$DEVICE ${MMCV_OPS:-0}") | sha256sum | cut -d' ' -f1)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

say() { echo "setup: $*"; }
# What build backends and legacy packages warn about is nothing that a user could act on.
export PYTHONWARNINGS=ignore
pip() { .venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint requirements/constraints.txt "$@"; }

[ -x .venv/bin/python ] || { say "creating .venv"; "$PYTHON" -m venv .venv; }
rm -f "$stamp"
say "torch and build tools"
pip -r requirements/build.txt
if [ "$DEVICE" = cuda ] && ! .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    fail "DEVICE=cuda needs a CUDA build of torch, but pip has found $(.venv/bin/python -c 'import torch; print(torch.__version__)'). Give pip an index with CUDA builds, or set DEVICE=cpu."
fi
say "spconv for $DEVICE"
# Both builds are the same modules: one must go before the other comes.
.venv/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes $other 2>/dev/null
# shellcheck disable=SC2086  # two names
pip $sparse
say "Ray, Optuna, MLflow and the rest"
pip --no-build-isolation --editable '.[dev]'
say "OpenMMLab packages"
pip --no-deps --no-build-isolation -r requirements/openmmlab.txt
if [ "${MMCV_OPS:-0}" = 1 ] && ! .venv/bin/python -c 'import torch, mmcv._ext' 2>/dev/null; then
    say "mmcv's operators (about ten minutes)"
    # CUDA_VISIBLE_DEVICES: with a GPU in sight its build would choose CUDA, for which it no longer compiles.
    .venv/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes mmcv
    CUDA_VISIBLE_DEVICES="" FORCE_CUDA=0 MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} pip --no-deps --no-build-isolation mmcv-full==1.7.2
    .venv/bin/python -c 'import torch, mmcv._ext' || fail "mmcv-full was built for another torch; remove it from pip's cache (pip cache remove mmcv_full) and run again."
fi
echo "$wanted" > "$stamp"
say "done"
