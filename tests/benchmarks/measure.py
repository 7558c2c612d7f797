"""Time and peak memory of a function, on whatever device it works on."""

import ctypes
import gc
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

_MMAP_THRESHOLD = -3  # of mallopt
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(work: Callable[[], object]) -> float:
    """One run, waited for.

    On one thread of the CPU the process's own time counts, so that other processes cost nothing;
    otherwise the clock on the wall.
    """
    clock = time.perf_counter
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        clock = time.process_time
    start = clock()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def side_by_side(
    works: Sequence[Callable[[], object]], *, rounds: int, warm_up: int = 1
) -> list[float]:
    """Median seconds of each, taken in turns so that a busy machine slows all of them."""
    for work in works:
        for _ in range(warm_up):
            seconds(work)
    taken: list[list[float]] = [[] for _ in works]
    for turn in range(rounds):
        order = list(enumerate(works))
        for place, work in order if turn % 2 else reversed(order):
            taken[place].append(seconds(work))
    return [statistics.median(of_one) for of_one in taken]


def peak_mb(make: Callable[..., Callable[[], object]], *arguments: object) -> float:
    """Largest memory in use during a second run, beyond what its inputs hold.

    On the CPU: resident memory of a process of its own, so that matrix libraries' work space and
    whatever else is not a tensor count too.

    Args:
        make: A function of a module, called with the arguments in that process; returns the work.
        arguments: Plain values.
    """
    if DEVICE.type == "cuda":
        work = make(*arguments)
        work()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_of_process, (make, arguments, torch.get_num_threads()))


def _peak_of_process(
    make: Callable[..., Callable[[], object]], arguments: tuple[object, ...], threads: int
) -> float:
    torch.set_num_threads(threads)
    # What a tensor frees leaves the process, instead of waiting in pieces for the next to fit.
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)
    work = make(*arguments)
    work()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = _status_mb("VmRSS")
    work()
    return _status_mb("VmHWM") - before


def _status_mb(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def show(benchmark, **numbers: float | str) -> None:
    """Keep numbers with the benchmark and print them as one line."""
    benchmark.extra_info.update(numbers)
    shown = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items()]
    print(f"\n{benchmark.name} [{DEVICE}]: {', '.join(shown)}", file=sys.stderr)
