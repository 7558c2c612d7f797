"""Out of memory, told apart from other failures: it would come again, so it is not tried again.

Four signs: an error of Python or torch, Ray's memory monitor, which names itself, a data loading
process that was killed, and the kernel's killer, which kills silently but counts.
"""

import errno
from collections.abc import Iterator
from pathlib import Path

_GPU_SIGNS = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_GPU_TYPE = ("torch", "OutOfMemoryError")  # torch cannot be imported here
_HOST_SIGNS = ("can't allocate memory", "Cannot allocate memory", "killed by signal: Killed")
_SHARED_SIGNS = ("insufficient shared memory", "killed by signal: Bus error")
RAY_SIGN = "killed due to the node running low on memory"

FEWER_SAMPLES = (
    "out of GPU memory: lower `data.samples_per_gpu`, and raise `optimizer_config.cumulative_iters`"
    " by as much"
)
LESS_AT_ONCE = (
    "out of memory: lower `data.workers_per_gpu`, or run fewer trials at once on a node"
    " (`resources.concurrent`, or more `resources.cpus` for each)"
)
MORE_SHARED = (
    "out of shared memory: lower `data.workers_per_gpu`, or give the container a larger /dev/shm"
)


class OutOfMemory(Exception):
    """A process of a trial was ended for lack of memory; its text says what to lower."""


def advice_for(error: BaseException) -> str | None:
    """What to lower after an error of a training; None if memory was not the cause."""
    text = str(error)
    names = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(error).__mro__}
    if _GPU_TYPE in names or any(sign in text for sign in _GPU_SIGNS):
        return FEWER_SAMPLES
    if any(sign in text for sign in _SHARED_SIGNS):
        return MORE_SHARED
    is_refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or is_refused or any(s in text for s in _HOST_SIGNS):
        return LESS_AT_ONCE
    return None


def advice_for_death(said: str) -> str | None:
    """The same for a process that died, by what Ray says about it."""
    if RAY_SIGN not in said:
        return None
    # Ray goes on with a table of processes and its own advice.
    return f"{LESS_AT_ONCE}. {' '.join(said.splitlines()[:2])}"


def num_killed(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many processes the kernel has killed for memory, where this one lives.

    Returns:
        The count of this process's control group, or else of the machine; None where the kernel
        counts neither.
    """
    for path in (*_group_files(proc, cgroups), proc / "vmstat"):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def _group_files(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The counters of the control group, by version 2 and by version 1."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        inside = group.lstrip("/")
        if not controllers:
            # A container sees its own group as the root.
            yield cgroups / inside / "memory.events"
            yield cgroups / "memory.events"
        elif "memory" in controllers.split(","):
            yield cgroups / "memory" / inside / "memory.oom_control"
            yield cgroups / "memory" / "memory.oom_control"
