"""A sweep on a cluster, as its user sees it."""

import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from launch import jobs
from launch.display import duration, idle_settings, table
from launch.opening import TargetError, open_spec, spec_name
from launch.provenance import CHECKOUT, commit
from launch.workplace import here

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

    from launch.opening import Opened

FOLLOW_END_S = 15.0


def submit(
    console: Console,
    *,
    spec_path: Path,
    address: str,
    root: Path,
    python: str,
    resume: bool,
    follow: bool,
) -> None:
    """Check a spec, send it as a job and follow the job.

    The files that the spec names are looked for by the job, since they lie on the cluster. What the
    sweep will take is compared with its budget before anything is sent, where it can be told here.

    Raises:
        TargetError: If a new sweep does not fit into its own budget.
        SystemExit: With code 1 if the job fails while it is followed.
    """
    if not (CHECKOUT / "pyproject.toml").is_file():
        raise TargetError(
            f"submit sends the checkout of this package, but {CHECKOUT} is none: install it from a"
            " checkout with `make setup`."
        )
    with console.status("[dim]Checking the spec ...", spinner_style="dim"):
        opened = open_spec(spec_path, here(), check_files=False, is_new=not resume)
    if opened.warnings:
        console.print(idle_settings(opened.warnings))
    request = jobs.build_job(
        opened.source.resolve(),
        opened.spec.name,
        checkout=CHECKOUT,
        root=root.absolute(),
        commit=commit(),
        submitted=datetime.now(UTC),
        action="resume" if resume else "run",
        python=python,
    )
    client = jobs.connect(address)
    if not resume:
        _foresee(console, opened, jobs.nodes_of(client), root)
    with console.status(f"[dim]Sending the code to {address} ...", spinner_style="dim"):
        job_id = jobs.submit(client, request)
    console.print(f"Submitted as job {job_id}; relative paths lead to {root.absolute()}.")
    _print_commands(console, job_id, address)
    if follow:
        _follow(console, client, job_id)


def _foresee(
    console: Console, opened: "Opened", nodes: "list[dict[str, float]]", root: Path
) -> None:
    """Say what a sweep will take, and refuse what exceeds its budget.

    Raises:
        TargetError: If it does not fit.
    """
    from launch.forecasting import foresee, refuse_over_budget
    from sweeps.report.wording import expected

    with contextlib.chdir(root) if root.is_dir() else contextlib.nullcontext():
        expectation, reason = foresee(opened, nodes)
    if expectation is None:
        console.print(f"What this will take cannot be told from here, but by the job: {reason}.")
        return
    refuse_over_budget(expectation)
    if (made := expectation.forecast) is not None:
        gpu_hours = "" if made.gpu_hours is None else f", {expected(made.gpu_hours)} GPU-hours"
        hours = "" if made.hours is None else f", {expected(made.hours)} hours"
        console.print(
            f"Expected: about {expected(made.trainings)} full trainings{gpu_hours}{hours}, with"
            f" {made.slots} at once on the cluster as it is."
        )


def show(console: Console, *, target: str | None, address: str, follow: bool) -> None:
    """One job, or all jobs of sweeps on a cluster."""
    client = jobs.connect(address)
    if target is None:
        _print_jobs(console, jobs.list_sweep_jobs(client))
        return
    job = jobs.find_job(client, spec_name(target))
    job_id = str(job.submission_id)
    _print_jobs(console, [job])
    if follow:
        _follow(console, client, job_id)
        return
    for line in jobs.last_lines(client, job_id):
        console.print(line, markup=False, highlight=False)


def stop(console: Console, *, target: str, address: str) -> None:
    """Stop a sweep's job.

    Raises:
        ClusterError: If it does not stop.
    """
    client = jobs.connect(address)
    job = jobs.find_job(client, spec_name(target))
    job_id = str(job.submission_id)
    if jobs.has_ended(job):
        raise TargetError(f"Job {job_id} has ended already ({_state(job)}).")
    with console.status(f"[dim]Stopping {job_id} ...", spinner_style="dim"):
        stopped = jobs.stop(client, job_id)
    if not jobs.has_ended(stopped):
        raise jobs.ClusterError(f"Job {job_id} has not stopped yet; look again with status.")
    spec = (job.metadata or {}).get("spec", "SPEC")
    console.print(
        f"Job {job_id} is {_state(stopped)}; nothing is lost."
        f" Go on with  aqr-sweep submit {spec} --resume --address {address}"
    )


def _follow(console: Console, client: "JobSubmissionClient", job_id: str) -> None:
    address = client.get_address()

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        jobs.follow(client, job_id, write)
    except KeyboardInterrupt:
        console.print(f"\nNo longer following; job {job_id} goes on.")
        _print_commands(console, job_id, address)
        return
    job = jobs.wait_for_end(client, job_id, FOLLOW_END_S)
    if _state(job) != "succeeded":
        message = f": {job.message}" if job.message else ""
        raise jobs.ClusterError(f"Job {job_id} {_state(job)}{message}")
    console.print(f"Job {job_id} succeeded.")


def _print_commands(console: Console, job_id: str, address: str) -> None:
    for verb in ("status", "stop"):
        console.print(f"  {verb:<8}aqr-sweep {verb} {job_id} --address {address}", style="dim")


def _print_jobs(console: Console, found: "list[JobDetails]") -> None:
    if not found:
        console.print("No sweep has been submitted there.")
        return
    made = table("job", "sweep", "state", "since", "time>", "commit", "spec")
    for job in found:
        told = job.metadata or {}
        made.add_row(
            job.submission_id,
            told["sweep"],
            _state(job),
            _moment(job.start_time),
            _span(job),
            _short_commit(told.get("commit", "")),
            told.get("spec", ""),
        )
    console.print(made)


def _short_commit(commit: str) -> str:
    head, _, dirty = commit.partition("-")
    return f"{head[:10]}-{dirty}" if dirty else head[:10]


def _state(job: "JobDetails") -> str:
    return str(getattr(job.status, "value", job.status)).lower()


def _moment(milliseconds: int | None) -> str:
    if not milliseconds:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def _span(job: "JobDetails") -> str:
    if not job.start_time:
        return ""
    end = job.end_time or datetime.now(UTC).timestamp() * 1000
    return duration((end - job.start_time) / 1000)
