"""What holds for all tests."""

import os
import signal
from pathlib import Path

import pytest
from machine import RAY_PATIENCE

INTEGRATION = Path(__file__).parent / "tests" / "integration"

# As `aqr_model.compat` sets it, which comes too late where a test imports torch first.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.update(RAY_PATIENCE)
if "PYTEST_XDIST_WORKER" in os.environ:
    # There are as many processes as cores; a test that is about threads asks for them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Take Ctrl-C as a command in the foreground does."""
    # A shell that starts a command in the background has it ignore Ctrl-C, and its children too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files: of several processes none shall end with one."""
    items.sort(key=lambda item: not item.path.is_relative_to(INTEGRATION))
