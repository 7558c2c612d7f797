"""A training of several processes that exchange real tensors, and write down what they do."""

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeps.record import ParamValue
from sweeps.seat import Seat, current_seat, must_leave
from sweeps.training import Report, TrialPreempted


@dataclass(frozen=True, kw_only=True)
class Ring:
    """Sums over its processes in each step.

    Attributes:
        log_dir: One file for each process of each attempt: what really happened, and when.
        faults: What happens in the middle of a trial's first attempt, by the trial's number.
    """

    log_dir: Path
    faults: Mapping[str, str]
    num_steps: int = 8
    steps_per_checkpoint: int = 2
    step_s: float = 0.05

    def __call__(
        self,
        params: Mapping[str, ParamValue],
        *,
        report: Report,
        workdir: Path,
        resume_from: Path | None,
    ) -> None:
        from launch.training import process_group

        seat = current_seat()
        notes = Notes(self.log_dir / f"{workdir.name}-{seat.rank}-{time.time_ns()}", seat)
        with process_group(seat):
            start = 0 if resume_from is None else json.loads(resume_from.read_text())["step"]
            notes.write("begin", step=start, **place_of(seat))
            try:
                self._train(start, float(params.get("x", 0.5)), report, workdir, seat, notes)
            finally:
                notes.write("end", step=-1)

    def _train(
        self, start: int, x: float, report: Report, workdir: Path, seat: Seat, notes: "Notes"
    ) -> None:
        self._score_if_due(start, x, report, workdir, seat)  # it may not have been heard
        for step in range(start + 1, self.num_steps + 1):
            time.sleep(self.step_s)
            num_present, num_leaving = exchange(seat, must_leave())
            assert num_present == seat.size
            if num_leaving:
                self._save(workdir, seat, step - 1)
                notes.write("left", step=step - 1)
                raise TrialPreempted(f"left before step {step}")
            notes.write("step", step=step)
            if step % self.steps_per_checkpoint == 0:
                self._save(workdir, seat, step)
            if step == self.num_steps // 2 + 1 and seat.rank == min(1, seat.size - 1):
                self._go_wrong(workdir)
            self._score_if_due(step, x, report, workdir, seat)

    def _score_if_due(self, step: int, x: float, report: Report, workdir: Path, seat: Seat) -> None:
        if step not in (self.num_steps // 2, self.num_steps):
            return
        report.rung(
            {"val/nds": x * step / self.num_steps},
            fraction=step / self.num_steps,
            val_share=1.0,
            epoch=step / self.num_steps,
            step=step,
            checkpoint=workdir / "latest.pth",
        )
        exchange(seat, False)  # nobody goes on before rank 0 may

    def _go_wrong(self, workdir: Path) -> None:
        fault, sign = self.faults.get(workdir.name[:4]), workdir / "went_wrong"
        if fault is None or sign.exists():
            return
        sign.touch()
        match fault:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "sigterm":
                os.kill(os.getpid(), signal.SIGTERM)
            case "raise":
                raise RuntimeError("a corrupt sample")
            case "memory":
                raise MemoryError("no room for 8 GiB")
            case "hang":
                threading.Event().wait()

    def _save(self, workdir: Path, seat: Seat, step: int) -> None:
        if seat.rank == 0:
            part = workdir / "latest.part"
            part.write_text(json.dumps({"step": step}))
            part.replace(workdir / "latest.pth")


def exchange(seat: Seat, flag: bool) -> tuple[int, int]:
    """How many processes are there, and how many of them say yes."""
    if seat.size == 1:
        return 1, int(flag)
    import torch

    counts = torch.tensor([1.0, float(flag)])
    torch.distributed.all_reduce(counts)
    return int(counts[0]), int(counts[1])


def place_of(seat: Seat) -> dict[str, str]:
    """The node of this process, and which GPU is its own."""
    import ray

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    node = ray.get_runtime_context().get_node_id()
    return {"node": node, "gpu": visible[seat.local_rank]}


class Notes:
    """A process's own log."""

    def __init__(self, path: Path, seat: Seat) -> None:
        self._path, self._seat = path, seat

    def write(self, what: str, **values: object) -> None:
        line = {"what": what, "time": time.time(), "pid": os.getpid(), "rank": self._seat.rank}
        with self._path.open("a") as file:
            file.write(json.dumps({**line, "size": self._seat.size, **values}) + "\n")
