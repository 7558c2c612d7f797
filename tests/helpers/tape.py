"""Random draws on a tape: what one implementation has drawn is handed to another.

Two implementations that draw the same quantities in the same order can be compared exactly, though
no common seed would align them.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

Tape = list[tuple[str, Any]]
_SOURCES = {
    **{name: np.random for name in ("rand", "uniform", "normal", "randint", "choice")},
    "randperm": torch,
    "sample": random,
}


@contextmanager
def recorded() -> Iterator[Tape]:
    """Note every draw from the global generators while the block runs: (function, value)."""
    tape: Tape = []

    def recording(name: str, draw: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            value = draw(*args, **kwargs)
            tape.append((name, value))
            return value

        return wrapper

    with ExitStack() as stack:
        for name, module in _SOURCES.items():
            stack.enter_context(patch.object(module, name, recording(name, getattr(module, name))))
        yield tape


@contextmanager
def replayed(tape: Tape) -> Iterator[None]:
    """Answer the draws of the block from a tape, in its order.

    Raises:
        AssertionError: If another function is asked, or the tape is too short or not used up.
    """
    left = list(tape)

    def answering(name: str) -> Any:
        def wrapper(*_: Any, **__: Any) -> Any:
            assert left, f"`{name}` is drawn, but the tape is used up"
            recorded_name, value = left.pop(0)
            assert name == recorded_name, f"`{name}` is drawn, but the tape has `{recorded_name}`"
            return value

        return wrapper

    with ExitStack() as stack:
        for name, module in _SOURCES.items():
            stack.enter_context(patch.object(module, name, answering(name)))
        yield
    assert not left, f"{[name for name, _ in left]} are on the tape, but were not drawn"
