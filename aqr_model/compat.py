"""Shims that let the OpenMMLab 1.x stack run on today's torch, each with its reason and its end.

``apply()`` must run before anything imports torchvision, mmdet3d or spconv; ``import aqr_model``
does. It is idempotent. Every shim acts only where its condition holds, so that an environment that
does not need it (a CUDA build of torchvision, say) is left alone.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

# OpenMP reads it when torch loads. Threads that wait would spin for long, and on cores that other
# processes use as well (loaders, a second trial) a step then takes several times as long; threads
# that slept at once would make a step on free cores a third longer (docs/training.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

LEGACY_PACKAGES = (
    "mmcv",
    "mmdet",
    "mmdet3d",
    "mmseg",
    "spconv",
    "cumm",
    "torchvision",
    "nuscenes",
    "lyft_dataset_sdk",
    "numba",
    "fire",
)
_TORCHVISION_OPS = ("nms", "qnms")
_KEPT_LIBRARIES: list[torch.library.Library] = []
_NEWEST_MMCV_MMDET3D_ACCEPTS = "1.7.0"


def apply() -> None:
    """Apply all shims and import mmdet3d."""
    _silence_legacy_warnings()
    _define_torchvision_schemas()
    _do_without_compiled_mmcv_operators()
    _import_mmdet3d()
    _quiet_mmcv_logger()
    _let_spconv_run_backward_on_cpu()
    _let_spconv_add_in_one_thread()


def _silence_legacy_warnings() -> None:
    """Ignore, by name, warnings that legacy packages raise about themselves.

    Reason: mmcv 1.x, mmdet3d 1.x, spconv and nuscenes-devkit announce successors or use calls that
    newer libraries deprecate; a user of this project cannot act on them. Warnings of our own
    modules pass.
    Goes when: the package that a line names is replaced or updated.
    """
    warnings.filterwarnings("ignore", message="On January 1, 2023, MMCV will release")
    warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")
    # mmdet's ResNet with with_cp, in torch's name.
    warnings.filterwarnings("ignore", message="torch.utils.checkpoint: the use_reentrant parameter")
    legacy = rf"({'|'.join(LEGACY_PACKAGES)})(\.|$)"
    for category in (UserWarning, DeprecationWarning, FutureWarning, SyntaxWarning):
        warnings.filterwarnings("ignore", category=category, module=legacy)


def _define_torchvision_schemas() -> None:
    """Declare the operators that torchvision expects to find in its compiled part.

    Reason: the registry's torchvision is built for CUDA; beside a CPU torch its operators are
    missing and ``import torchvision`` fails while registering their meta kernels, before anything
    is used. Only the
    schemas are declared: calling such an operator still fails, and says so.
    Goes when: torchvision can be had for the CPU build of torch.
    """
    import torch._C

    missing = [
        op
        for op in _TORCHVISION_OPS
        if not torch._C._jit_get_schemas_for_operator(f"torchvision::{op}")
    ]
    if not missing or _torchvision_has_compiled_part():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for op in missing:
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT_LIBRARIES.append(library)  # a Library unregisters its schemas when it is collected


def _torchvision_has_compiled_part() -> bool:
    return torch.version.cuda is not None


class _MissingOperators(types.ModuleType):
    """Stands for a compiled module: each of its functions can be named, and raises when called."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: object, **__: object) -> NoReturn:
            raise NotImplementedError(
                f"mmcv's operator `{name}` is called, but mmcv is installed without its compiled "
                "operators, which no shipped config needs. `MMCV_OPS=1 make setup` compiles them "
                "for the CPU (about ten minutes)."
            )

        return missing


def _do_without_compiled_mmcv_operators() -> None:
    """Let the wrappers of mmcv's compiled operators be imported where these are not compiled.

    Reason: mmdet and mmdet3d import all of them, CMT calls none. Compiling them takes 8 to 13
    minutes, and mmcv 1.x no longer compiles for CUDA (its headers name a folder, THC, that torch
    has dropped).
    Goes when: mmdet and mmdet3d import operators where they are used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = importlib.util.find_spec("mmcv._ext") is not None
    if not compiled:
        absent = _MissingOperators("mmcv._ext")
        # mmcv asks for its loader to know whether there are operators: there is none.
        absent.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", loader=None)
        sys.modules["mmcv._ext"] = absent


def _import_mmdet3d() -> None:
    """Import mmdet3d past its version guard.

    Reason: mmdet3d 1.0.0rc6 asserts mmcv <= 1.7.0. mmcv 1.7.2 differs from that in fixes for
    torch 2.x only.
    Goes when: mmdet3d's guard accepts the installed mmcv.
    """
    with _presented_mmcv_version(_NEWEST_MMCV_MMDET3D_ACCEPTS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing the old stack says concerns nobody here
        for name in ("mmdet3d", "mmdet3d.models", "mmdet3d.datasets", "mmdet3d.core"):
            importlib.import_module(name)
    # numba, imported on the way, resets filters; ours must stand after it.
    _silence_legacy_warnings()


def _quiet_mmcv_logger() -> None:
    """Keep mmcv's logger to warnings, and let the application's handlers have them.

    Reason: ``init_weights`` of mmcv 1.x logs a paragraph for every parameter, some 1,300 lines for
    a detector. Its logger has a handler of its own, which keeps the standard error stream of the
    moment it was made and fails once that is closed, as between the trials of one process.
    Goes when: modules no longer come from mmcv's ``BaseModule``.
    """
    from mmcv.utils import get_logger

    logger = get_logger("mmcv")
    logger.setLevel(logging.WARNING)
    logger.handlers.clear()
    logger.propagate = True


@contextlib.contextmanager
def _presented_mmcv_version(version: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mmcv
    true_version = mmcv.__version__
    mmcv.__version__ = version
    try:
        yield
    finally:
        mmcv.__version__ = true_version


def _let_spconv_run_backward_on_cpu() -> None:
    """Give spconv a null stream where there is no CUDA.

    Reason: spconv 2.3.8 asks for the current CUDA stream in its backward pass even when all tensors
    are on the CPU, which raises in a CPU build of torch.
    Goes when: spconv asks only for CUDA tensors.
    """
    if torch.cuda.is_available():
        return
    ops = importlib.import_module("spconv.pytorch.ops")
    vars(ops)["get_current_stream"] = lambda: 0


def _let_spconv_add_in_one_thread() -> None:
    """Run the addition of spconv's products on the CPU in one thread.

    Reason: the threads of spconv 2.3.8's ``scatter_add`` (its ``csrc/sparse/gather.py``) share the
    pointers to what they read and write. With two threads up to 45 % of all convolutions were
    wrong, by up to 48 % of the largest value. The matrix products keep their threads.
    Goes when: these two pointers are local to spconv's loop.
    """
    from threadpoolctl import ThreadpoolController

    operators = importlib.import_module("spconv.pytorch.ops").SpconvOps
    if hasattr(operators.scatter_add_cpu, "__wrapped__"):
        return
    # All OpenMP libraries: it depends on the loader which of them spconv's calls reach.
    alone = ThreadpoolController().wrap(limits=1, user_api="openmp")
    operators.scatter_add_cpu = staticmethod(alone(operators.scatter_add_cpu))
