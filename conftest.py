"""What holds for all tests."""

import os
import signal

# As `aqr_model.compat` sets it, which comes too late where a test imports torch first.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def pytest_configure() -> None:
    """Take Ctrl-C as a command in the foreground does."""
    # A shell that starts a command in the background has it ignore Ctrl-C, and its children too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
