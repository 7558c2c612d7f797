"""A sweep as a Ray job: the request as plain data, and the Jobs API that carries it out.

The code travels with the job; data, checkpoints and results do not. Relative paths of the spec lead
to the directory that `submit` names, which the cluster shares.
"""

import asyncio
import logging
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from launch.workplace import COMMIT_VARIABLE, ROOT_VARIABLE

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

Action = Literal["run", "resume"]

# As in .gitignore: a leading slash keeps aqr_model/data, which is code, on board.
EXCLUDES = (
    *("/.git", "/.venv", "/data", "/runs", "/ckpts", "/work_dirs", "/build"),
    *("__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis"),
)
CONNECT_TIMEOUT_S = 5.0
AGENT_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
STATE_TIMEOUT_S = 30
MAX_NODES = 10_000
POLL_S = 0.5
DEFAULT_PORT = 8265
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
TOKEN_HELP = (
    "put the cluster's token into ~/.ray/auth_token or RAY_AUTH_TOKEN (on the head node, `ray"
    " get-auth-token` shows it)"
)
_TAIL_LINES = 20
# They tell how a package is made and sent.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)


class ClusterError(RuntimeError):
    """A cluster that does not do what is asked; says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """All that the Jobs API is asked for.

    Attributes:
        submission_id: Names the job; the sweep's name and when it was submitted.
        entrypoint: Shell command, started in the uploaded copy of the code.
        entrypoint_num_cpus: CPUs set aside for the driver; it needs none of the trials' share.
        runtime_env: What travels, and the environment of driver and trials.
        metadata: Finds the job again, and says what it runs.
    """

    submission_id: str
    entrypoint: str
    entrypoint_num_cpus: float
    runtime_env: Mapping[str, Any]
    metadata: Mapping[str, str]


def build_job(
    spec_path: Path,
    name: str,
    *,
    checkout: Path,
    root: Path,
    commit: str | None,
    submitted: datetime,
    action: Action = "run",
    python: str = "python",
) -> JobRequest:
    """The request that runs a sweep on a cluster.

    Args:
        spec_path: The spec, absolute. One in the checkout travels; any other must be readable on
            the cluster.
        name: The sweep's name.
        checkout: Directory of the code, uploaded.
        root: Directory on the cluster where the spec's relative paths lead.
        commit: Commit of the code.
        submitted: Now.
        action: Start the sweep, or continue it.
        python: Interpreter on the cluster.
    """
    travels = spec_path.is_relative_to(checkout)
    spec = spec_path.relative_to(checkout) if travels else spec_path
    variables = {ROOT_VARIABLE: str(root), "PYTHONUNBUFFERED": "1"}
    described = {"sweep": name, "action": action, "spec": str(spec), "root": str(root)}
    if commit is not None:
        variables[COMMIT_VARIABLE] = commit
        described["commit"] = commit
    return JobRequest(
        submission_id=f"{name}-{submitted:%Y%m%d-%H%M%S}",
        entrypoint=shlex.join([python, "-m", "launch.cli", action, str(spec), "--plain"]),
        entrypoint_num_cpus=0,
        runtime_env={
            "working_dir": str(checkout),
            "excludes": list(EXCLUDES),
            "env_vars": variables,
        },
        metadata=described,
    )


def connect(address: str) -> "JobSubmissionClient":
    """A client of the Jobs API.

    Raises:
        ClusterError: If nothing answers, or the token is missing or wrong.
    """
    address = address if "://" in address else f"http://{address}"
    _knock(address)
    _use_token()
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with _translated(address):
        client = JobSubmissionClient(address)
        client.list_jobs()  # the version alone is told to anybody
    return client


def submit(client: "JobSubmissionClient", request: JobRequest) -> str:
    """Send a job, unless its sweep has one that has not ended.

    Raises:
        ClusterError: If the cluster refuses, or the sweep runs there already.
    """
    with _translated(client.get_address()):
        others = _of_sweep(client.list_jobs(), request.metadata["sweep"])
        if others and not has_ended(others[-1]):
            raise ClusterError(
                f"The sweep {request.metadata['sweep']!r} runs there already, as job"
                f" {others[-1].submission_id}: follow it with `aqr-sweep status`, or stop it first."
            )
        return _send(client, request)


def nodes_of(client: "JobSubmissionClient") -> list[dict[str, float]]:
    """What each node of the cluster has, in use or not."""
    from ray.util.state import list_nodes

    address = client.get_address()
    with _translated(address):
        nodes: list[Any] = list_nodes(address=address, limit=MAX_NODES, timeout=STATE_TIMEOUT_S)
    return [dict(node.resources_total) for node in nodes if node.state == "ALIVE"]


def list_sweep_jobs(client: "JobSubmissionClient") -> list["JobDetails"]:
    """The jobs of all sweeps, oldest first."""
    with _translated(client.get_address()):
        return _of_sweep(client.list_jobs(), None)


def find_job(client: "JobSubmissionClient", target: str) -> "JobDetails":
    """A job by its id, or the newest one of a sweep.

    Raises:
        ClusterError: If there is none.
    """
    jobs = list_sweep_jobs(client)
    for job in reversed(jobs):
        if target in (job.submission_id, (job.metadata or {})["sweep"]):
            return job
    there = ", ".join(str(job.submission_id) for job in jobs) or "none"
    raise ClusterError(f"No job or sweep {target!r} is known there. Jobs of sweeps: {there}.")


def has_ended(job: "JobDetails") -> bool:
    """Whether a job has ended, in whatever way."""
    return str(getattr(job.status, "value", job.status)) in ENDED


def follow(client: "JobSubmissionClient", job_id: str, write: Callable[[str], None]) -> None:
    """Hand on a job's output, from its first line, until it ends; Ctrl-C leaves the job alone.

    Raises:
        ClusterError: If the connection breaks.
        KeyboardInterrupt: After Ctrl-C.
    """

    async def pump() -> None:
        async with aclosing(client.tail_job_logs(job_id)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                write(chunk)

    with _translated(client.get_address()):
        asyncio.run(pump())


def wait_for_end(client: "JobSubmissionClient", job_id: str, timeout_s: float) -> "JobDetails":
    """The job when it has ended, or as it is when time is up."""
    deadline = time.monotonic() + timeout_s
    with _translated(client.get_address()):
        while True:
            job = client.get_job_info(job_id)
            if has_ended(job) or time.monotonic() >= deadline:
                return job
            time.sleep(POLL_S)


def stop(client: "JobSubmissionClient", job_id: str) -> "JobDetails":
    """Ask a job to stop and wait for it."""
    with _translated(client.get_address()):
        client.stop_job(job_id)
    return wait_for_end(client, job_id, STOP_TIMEOUT_S)


def last_lines(client: "JobSubmissionClient", job_id: str) -> Sequence[str]:
    """The end of a job's output."""
    with _translated(client.get_address()):
        return client.get_job_logs(job_id).splitlines()[-_TAIL_LINES:]


def _send(client: "JobSubmissionClient", request: JobRequest) -> str:
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return client.submit_job(
                entrypoint=request.entrypoint,
                submission_id=request.submission_id,
                entrypoint_num_cpus=request.entrypoint_num_cpus,
                runtime_env=dict(request.runtime_env),
                metadata=dict(request.metadata),
            )
        except RuntimeError as error:
            # A head that has just started answers before it can take jobs, and says so.
            if "No available agent" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(POLL_S)


def _of_sweep(jobs: Sequence["JobDetails"], name: str | None) -> list["JobDetails"]:
    ours = [job for job in jobs if "sweep" in (job.metadata or {})]
    wanted = [job for job in ours if name is None or (job.metadata or {})["sweep"] == name]
    return sorted(wanted, key=lambda job: job.start_time or 0)


def _knock(address: str) -> None:
    """Fail within seconds where Ray's client would wait for minutes."""
    parts = urlsplit(address)
    try:
        port = parts.port or (443 if parts.scheme == "https" else DEFAULT_PORT)
        with socket.create_connection((parts.hostname or "", port), CONNECT_TIMEOUT_S):
            return
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"No Ray cluster answers at {address} ({error}): the address is that of the head's"
            f" dashboard, usually http://HEAD:{DEFAULT_PORT}."
        ) from error


def _use_token() -> None:
    """Let Ray send the user's token if there is one; it asks for a switch besides."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """Ray's and the network's errors, each as one sentence."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        wrong = "Authentication failed" in str(error)
        fault = "does not accept this token" if wrong else "asks for a token"
        raise ClusterError(f"The cluster at {address} {fault}: {TOKEN_HELP}.") from error
    except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
        raise ClusterError(
            f"The connection to the cluster at {address} broke: {_brief(error)}"
        ) from error
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ClusterError):
            raise
        raise ClusterError(f"The cluster at {address} refused: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """What the server said, without the trace that it sends along."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return re.sub(r"^\w+(\.\w+)*(Error|Exception): ", "", text).strip()
