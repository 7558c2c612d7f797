"""A sweep in this process: with its display, its tracker and its report; and stopping another's."""

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from launch.display import idle_settings, shortest
from launch.forecasting import count_samples, expect, measured_speed, refuse_over_budget
from launch.opening import COPY_NAME, Opened, TargetError, driver_of, find_sweep
from launch.progress import Progress
from launch.provenance import COMMIT_TAG, commit
from launch.results import next_commands, print_result
from launch.workplace import Workplace
from sweeps.listeners import Listener, SweepContext

if TYPE_CHECKING:
    from sweeps.record import SweepRecord
    from sweeps.spec import SweepSpec

INTERRUPTED = 130
STOP_TIMEOUT_S = 60.0
POLL_S = 0.2


def refuse_existing(spec: "SweepSpec") -> None:
    """Say early that a sweep is there already.

    Raises:
        TargetError: If it is.
    """
    if (spec.directory / COPY_NAME).exists():
        directory = shortest(spec.directory)
        raise TargetError(
            f"The sweep {spec.name!r} exists in {directory}: go on with `aqr-sweep resume"
            f" {directory}`, or give the spec another name."
        )


def drive(opened: Opened, *, resume: bool, plain: bool, console: Console) -> None:
    """Run or resume a sweep to its end and show what came out.

    Raises:
        TargetError: If a new sweep does not fit into its own budget.
        SystemExit: After Ctrl-C, which leaves a sweep that can be resumed.
    """
    if opened.warnings:
        console.print(idle_settings(opened.warnings))
    try:
        start = _resume if resume else _start
        record = _drive(opened, start(opened), plain=plain, console=console)
    except KeyboardInterrupt:
        directory = shortest(opened.spec.directory)
        console.print(f"Interrupted; nothing is lost. Go on with  aqr-sweep resume {directory}")
        raise SystemExit(INTERRUPTED) from None
    print_result(console, record, opened.spec)


def _start(opened: Opened) -> "Callable[..., SweepRecord]":
    """How a new sweep is run, with its forecast."""
    from sweeps.run import run_sweep

    expectation = expect(opened, measured_speed(opened.spec), count_samples(opened))
    refuse_over_budget(expectation)
    made = expectation.forecast
    return partial(run_sweep, forecast=None if made is None else made.dump())


def _resume(opened: Opened) -> "Callable[..., SweepRecord]":
    """How a sweep is resumed: its forecast and its budget are those of its start."""
    from sweeps.run import resume_sweep

    return resume_sweep


def _drive(
    opened: Opened, start: "Callable[..., SweepRecord]", *, plain: bool, console: Console
) -> "SweepRecord":
    from sweeps.report import write_report
    from sweeps.tracker import Tracker

    spec, code = opened.spec, commit()
    with (
        Progress(spec, console, live=console.is_terminal and not plain) as progress,
        Tracker(tags={COMMIT_TAG: code} if code else {}, warn=progress.warn) as tracker,
    ):
        record = start(spec, opened.training, listeners=[_Terminable(), progress, tracker])
        write_report(
            record, spec.directory, spec=spec, commit=code, commands=next_commands(spec, record)
        )
    return record


class _Terminable(Listener):
    """Makes SIGTERM, which ends a Ray job, as harmless as Ctrl-C; Ray sets its own on the way."""

    def on_start(self, sweep: SweepContext) -> None:
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def stop_driver(console: Console, target: str, workplace: Workplace) -> None:
    """Interrupt the driver of a sweep on this machine and wait for its end.

    Raises:
        TargetError: If there is none, or it runs elsewhere.
    """
    directory = shortest(find_sweep(target, workplace))
    owner = driver_of(directory)
    if owner is None:
        raise TargetError(f"Nobody drives the sweep in {directory}: there is nothing to stop.")
    found = re.fullmatch(r"process (\d+) on (.+)", owner)
    if found is None or found[2] != socket.gethostname():
        raise TargetError(
            f"The sweep is driven by {owner}, not from this machine: stop it there or, if it is a"
            " job, with --address."
        )
    os.kill(int(found[1]), signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while driver_of(directory) is not None:
        if time.monotonic() >= deadline:
            raise TargetError(f"The driver ({owner}) has not stopped in {STOP_TIMEOUT_S:.0f} s.")
        time.sleep(POLL_S)
    console.print(f"Stopped; nothing is lost. Go on with  aqr-sweep resume {directory}")
