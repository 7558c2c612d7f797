"""A real run over a space with conditions and schedules, interrupted and resumed.

What the trainings got is held against the record, and both against the spec.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from conditional_driver import NUM_EPOCHS, conditional_spec
from growing import whole_lines

from sweeps.record import SweepRecord, TrialRecord, read_sweep

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
NUM_TRIALS, WAIT_S = 8, 480.0
SCHEDULE = ("type", "from_epoch_1", "value_1", "from_epoch_2", "value_2", "from_epoch_3", "value_3")
RESIDUAL = {f"residual_schedule.{part}" for part in SCHEDULE}
CLAMP = {f"clamp_schedule.{part}" for part in ("type", "start_value", "end_value", "warmup_epochs")}


@contextmanager
def driver(command: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver process; whatever is left of it in the end is killed."""
    with (folder / f"{command}.log").open("w") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, str(Path(__file__).with_name("conditional_driver.py")), command),
                *(str(folder / "sweeps"), str(folder / "logs")),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield process
    finally:
        members = [psutil.Process(process.pid)] if process.poll() is None else []
        for parent in list(members):
            members += parent.children(recursive=True)
        for member in members:
            member.kill()
        process.wait(30)


def lines(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What each training wrote, by label."""
    return {
        path.name: [json.loads(line) for line in whole_lines(path)]
        for path in (folder / "logs").iterdir()
    }


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepRecord, dict[str, int]]:
    """The folder and record of a sweep that was interrupted while trials ran.

    And these trials, with how often each had begun: one may have had no process yet.
    """
    folder = tmp_path_factory.mktemp("conditional")
    (folder / "logs").mkdir()
    with driver("run", folder) as process:
        deadline = time.monotonic() + WAIT_S
        while sum(line["what"] == "epoch" for each in lines(folder).values() for line in each) < 40:
            assert process.poll() is None, (folder / "run.log").read_text()
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130, (folder / "run.log").read_text()
    spec = conditional_spec(folder / "sweeps")
    half = read_sweep(spec.storage_url, spec.name)
    begun = num_begun(folder)
    cut = {t.label: begun.get(t.label, 0) for t in half.started if t.outcome is None}
    with driver("resume", folder) as process:
        assert process.wait(WAIT_S) == 0, (folder / "resume.log").read_text()
    return folder, read_sweep(spec.storage_url, spec.name), cut


def num_begun(folder: Path) -> dict[str, int]:
    """How often each training has begun."""
    return {
        label: sum(line["what"] == "begin" for line in each)
        for label, each in lines(folder).items()
    }


def expected_names(method: Any) -> set[str]:
    """The parameters that a trial must have, by the conditions of the spec."""
    names = {"render_method", "seed"} | CLAMP
    if method == "gaussian":
        names |= {"gaussian_sigma"}
    if method == "bilinear":
        names |= {"bilinear_radius"}
    return names if method == "direct" else names | RESIDUAL


def test_the_sweep_was_cut_in_the_middle_and_came_to_its_end(
    ended: tuple[Path, SweepRecord, dict[str, int]],
) -> None:
    folder, record, cut = ended
    assert any(cut.values()), "no trial was running when the sweep was interrupted"
    assert [trial.number for trial in record.searched] == list(range(NUM_TRIALS))
    assert all(trial.outcome == "finished" for trial in record.started)
    # What had begun goes on, the rest is trained once.
    for label, count in num_begun(folder).items():
        assert count == 1 + cut.get(label, 0), label
    methods = {trial.params["render_method"] for trial in record.searched}
    assert methods == {"gaussian", "bilinear", "direct"}, "the seed must show every branch"


def test_each_trial_has_the_parameters_that_its_conditions_ask_for(
    ended: tuple[Path, SweepRecord, dict[str, int]],
) -> None:
    for trial in ended[1].searched:
        params = trial.params
        assert set(params) == expected_names(params["render_method"])
        for name, low, high in (
            ("gaussian_sigma", 0.5, 4.0),
            ("bilinear_radius", 1.0, 6.0),
            ("clamp_schedule.start_value", 1.2, 3.0),
            ("residual_schedule.value_1", 0.5, 0.9),
            ("residual_schedule.value_2", 0.3, 0.9),
        ):
            assert name not in params or low <= params[name] <= high
        assert params["clamp_schedule.end_value"] in (1.0, 1.2)
        if params["render_method"] != "direct":
            assert params["residual_schedule.value_1"] >= params["residual_schedule.value_2"]
            assert params["residual_schedule.from_epoch_2"] in range(1, 7)
            assert params["residual_schedule.from_epoch_3"] == 8


def test_the_study_holds_what_was_sampled_and_no_inactive_axis(
    ended: tuple[Path, SweepRecord, dict[str, int]],
) -> None:
    folder, record, _ = ended
    spec = conditional_spec(folder / "sweeps")
    study = optuna.load_study(study_name=spec.name, storage=spec.storage_url)
    space = spec.build_space()
    for trial, stored in zip(record.searched, study.trials, strict=True):
        active = set(space.axes) & set(trial.params)
        assert set(stored.params) == set(trial.sampled) == active
        assert space.resolve(stored.params) == {
            name: value for name, value in trial.params.items() if name != "seed"
        }


def test_the_training_got_what_the_record_says(
    ended: tuple[Path, SweepRecord, dict[str, int]],
) -> None:
    folder, record, _ = ended
    logs = lines(folder)
    assert set(logs) == {trial.label for trial in record.started}
    for trial in record.started:
        for note in logs[trial.label]:
            if note["what"] == "begin":
                assert note["params"] == dict(trial.params)
    assert logs[record.started[0].label][0]["params"] == {"enable_aqr": False, "seed": 5}


def test_the_values_of_each_epoch_are_those_of_the_schedules(
    ended: tuple[Path, SweepRecord, dict[str, int]],
) -> None:
    folder, record, _ = ended
    logs = lines(folder)
    for trial in record.searched:
        seen = {n["epoch"]: n["now"] for n in logs[trial.label] if n["what"] == "epoch"}
        assert sorted(seen) == list(range(NUM_EPOCHS))
        for epoch, now in seen.items():
            assert now.keys() == (
                {"clamp_schedule"}
                if trial.params["render_method"] == "direct"
                else {"clamp_schedule", "residual_schedule"}
            )
            assert now["clamp_schedule"] == pytest.approx(cosine_at(trial, epoch))
            if "residual_schedule" in now:
                assert now["residual_schedule"] == stage_at(trial, epoch)


def stage_at(trial: TrialRecord, epoch: int) -> Any:
    part = {key.rpartition(".")[2]: value for key, value in trial.params.items()}
    begun = [number for number in (1, 2, 3) if part[f"from_epoch_{number}"] <= epoch]
    return part[f"value_{begun[-1]}"]


def cosine_at(trial: TrialRecord, epoch: int) -> float:
    start, end = (float(trial.params[f"clamp_schedule.{part}_value"]) for part in ("start", "end"))
    share = max(0, epoch - 2) / (NUM_EPOCHS - 2)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
