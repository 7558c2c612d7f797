"""Two processes that train together, for tests: ``run`` starts them, this file is what they run.

A job is a training with its config; a gang runs its jobs one after another, each in a process group
of its own, since an error ends the group.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.ports import free_port

NUM_RANKS = 2
TIMEOUT_S = 480


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training of the gang.

    Attributes:
        name: Of the job; each rank leaves ``<name>.rank<r>.json`` in the folder.
        config: Config file.
        workdir: Its folder.
        resume: Whether to go on from the folder's checkpoint.
        stop_at: Rung whose report raises, counted from 1.
        fault: ``(rank, step, kind)``: kind "nan" makes the loss NaN, "raise" raises in the forward.
    """

    name: str
    config: str
    workdir: str
    resume: bool = False
    stop_at: int | None = None
    fault: tuple[int, int, str] | None = None


def run(jobs: list[Job]) -> list[list[dict]]:
    """Run jobs; for each, what each rank saw: ``rungs``, ``logs``, ``error``."""
    ports = [free_port() for _ in jobs]
    task = json.dumps({"jobs": [asdict(job) for job in jobs], "ports": ports})
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, task],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(NUM_RANKS),
                "MASTER_ADDR": "127.0.0.1",
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(NUM_RANKS)
    ]
    try:
        said = [process.communicate(timeout=TIMEOUT_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(said)[-6000:]
    return [
        [
            json.loads((Path(job.workdir) / f"{job.name}.rank{rank}.json").read_text())
            for rank in range(NUM_RANKS)
        ]
        for job in jobs
    ]


class Recorder:
    """Keeps what is reported."""

    def __init__(self, stop_at: int | None) -> None:
        self.rungs, self.logs, self.stop_at = [], [], stop_at

    def rung(self, metrics, *, fraction, val_share, epoch, step, checkpoint):
        self.rungs.append([step, dict(metrics)])
        if len(self.rungs) == self.stop_at:
            raise KeyError("stopped by the sweep")

    def log(self, values, *, step):
        self.logs.append([step, dict(values)])

    def artifact(self, path):
        pass


def _train(job: Job, rank: int) -> dict:
    from aqr_model.engine import loop as training
    from aqr_model.preflight.reading import load_config

    report = Recorder(job.stop_at)
    seen: dict = {"rungs": [], "logs": [], "error": None}
    plain, calls = training.total_loss, iter(range(10**6))

    def faulty(terms):
        step = next(calls)
        if job.fault is not None and job.fault[:2] == (rank, step):
            if job.fault[2] == "raise":
                raise LookupError("a broken sample")
            terms["loss_cls"] = terms["loss_cls"] * math.nan
        return plain(terms)

    training.total_loss = faulty
    workdir = Path(job.workdir)
    try:
        training.train(
            load_config(job.config),
            workdir=workdir,
            report=report,
            resume_from=workdir / "latest.pth" if job.resume else None,
        )
    except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
        seen["error"] = [type(error).__name__, str(error)]
    finally:
        training.total_loss = plain
    return seen | {"rungs": report.rungs, "logs": report.logs}


def _main(task: dict) -> None:
    import torch.distributed as dist

    import aqr_model  # noqa: F401

    rank = int(os.environ["RANK"])
    for job, port in zip(task["jobs"], task["ports"], strict=True):
        job = Job(**{**job, "fault": job["fault"] and tuple(job["fault"])})
        os.environ["MASTER_PORT"] = str(port)
        dist.init_process_group("gloo")
        seen = _train(job, rank)
        if dist.is_initialized():
            dist.destroy_process_group()
        Path(job.workdir).mkdir(parents=True, exist_ok=True)
        (Path(job.workdir) / f"{job.name}.rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
