from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import jobs
from launch.jobs import ClusterError, JobRequest, build_job, connect, find_job, submit

CHECKOUT = Path("/home/me/aqr")
WHEN = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)


def build(spec=CHECKOUT / "sweeps/specs/quickstart.yaml", **changes):
    given = {
        "checkout": CHECKOUT,
        "root": Path("/shared/me"),
        "commit": "c0ffee",
        "submitted": WHEN,
    }
    return build_job(spec, "quickstart", **{**given, **changes})


def test_the_whole_request_is_the_recorded_one():
    assert build() == JobRequest(
        submission_id="quickstart-20310203-040506",
        entrypoint="python -m launch.cli run sweeps/specs/quickstart.yaml --plain",
        entrypoint_num_cpus=0,
        runtime_env={
            "working_dir": "/home/me/aqr",
            "excludes": [
                "/.git",
                "/.venv",
                "/data",
                "/runs",
                "/ckpts",
                "/work_dirs",
                "/build",
                "__pycache__",
                ".pytest_cache",
                ".ruff_cache",
                ".hypothesis",
            ],
            "env_vars": {
                "AQR_ROOT": "/shared/me",
                "PYTHONUNBUFFERED": "1",
                "AQR_COMMIT": "c0ffee",
            },
        },
        metadata={
            "sweep": "quickstart",
            "action": "run",
            "spec": "sweeps/specs/quickstart.yaml",
            "root": "/shared/me",
            "commit": "c0ffee",
        },
    )


def test_a_spec_outside_the_checkout_is_named_by_its_full_path():
    request = build(Path("/shared/my specs/a.yaml"), action="resume", python="/opt/py", commit=None)
    assert request.entrypoint == "/opt/py -m launch.cli resume '/shared/my specs/a.yaml' --plain"
    assert "AQR_COMMIT" not in request.runtime_env["env_vars"]
    assert "commit" not in request.metadata


def job(submission_id, sweep, status="SUCCEEDED", start=0):
    metadata = None if sweep is None else {"sweep": sweep}
    return SimpleNamespace(
        submission_id=submission_id, metadata=metadata, status=status, start_time=start
    )


class Client:
    """The part of Ray's client that these functions use."""

    def __init__(self, *known, failures=()):
        self.known, self.failures, self.sent = list(known), list(failures), []

    def get_address(self):
        return "http://head:8265"

    def list_jobs(self):
        return self.known

    def submit_job(self, **request):
        if self.failures:
            raise RuntimeError(self.failures.pop(0))
        self.sent.append(request)
        return request["submission_id"]


def test_a_job_is_found_by_its_id_or_as_the_newest_of_its_sweep():
    client = Client(job("b", "one", start=2), job("a", "one", start=1), job("other", None, start=3))
    assert find_job(client, "a").submission_id == "a"
    assert find_job(client, "one").submission_id == "b"
    with pytest.raises(ClusterError, match=r"No job or sweep 'two' .* Jobs of sweeps: a, b\."):
        find_job(client, "two")


def test_a_request_is_sent_as_it_was_built():
    client = Client(job("old", "quickstart"))
    assert submit(client, build()) == "quickstart-20310203-040506"
    assert JobRequest(**client.sent[0]) == build()


def test_a_sweep_that_runs_there_is_not_sent_again():
    client = Client(job("old", "quickstart", status="RUNNING"))
    with pytest.raises(ClusterError, match="runs there already, as job old"):
        submit(client, build())
    assert client.sent == []


def test_a_head_that_is_still_starting_is_waited_for(monkeypatch):
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    client = Client(
        failures=["status code 500: No available agent to submit job, please try again"]
    )
    submit(client, build())
    assert len(client.sent) == 1


def test_another_refusal_is_one_sentence():
    client = Client(failures=["Request failed with status code 400: Traceback ...\nno such thing"])
    with pytest.raises(ClusterError, match=r"^The cluster at http://.* refused: no such thing"):
        submit(client, build())


@pytest.mark.parametrize("address", ["127.0.0.1:9", "http://127.0.0.1:9", "http://127.0.0.1:0x"])
def test_a_cluster_that_does_not_answer_is_one_sentence(address):
    with pytest.raises(ClusterError, match=r"^No Ray cluster answers at http://127.0.0.1:"):
        connect(address)
