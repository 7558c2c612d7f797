from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.seat import Seat, take_seat
from sweeps.training import GangFailed
from sweeps.worker import End, Training, Worker


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr("sweeps.worker.heed_sigterm", lambda: None)
    monkeypatch.setattr("sweeps.worker.use_threads", lambda number: None)
    yield Worker(1)
    take_seat()


def train(params: object, **named: object) -> None:
    pass


@pytest.mark.timeout(30)
def test_an_error_around_the_training_ends_it_with_the_reason(
    worker: Worker, tmp_path: Path
) -> None:
    # No timer can be set for so long.
    training = Training(
        train_fn=train, params={}, workdir=tmp_path, resume_from=None, silence_s=1e12
    )
    worker.begin(training, Seat(rank=0, size=2), "")
    end = worker.next()
    assert isinstance(end, End)
    assert isinstance(end.error, GangFailed)
    assert str(end.error).startswith("rank 0 of 2: OverflowError: ")


@pytest.mark.timeout(30)
def test_a_log_that_cannot_be_written_ends_it_with_the_reason(
    worker: Worker, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    training = Training(train_fn=train, params={}, workdir=file / "t000", resume_from=None)
    worker.begin(training, Seat(rank=1, size=2), "")
    end = worker.next()
    assert isinstance(end, End)
    assert str(end.error).startswith("rank 1 of 2: NotADirectoryError: [Errno 20]")
