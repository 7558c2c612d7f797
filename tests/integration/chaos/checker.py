"""Holds a sweep to what it promised, by the trainer's own diaries.

Reads the study's and MLflow's tables with plain SQL and the checkpoints as files: nothing here
comes from the code that is checked.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from growing import whole_lines

from chaos.trainer import LOSS, SCORE


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial as the study's tables have it."""

    study: str
    number: int
    label: str
    state: str
    value: float | None
    attrs: Mapping[str, Any]
    scores: tuple[float, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """At which it was scored."""
        return tuple(rung["step"] for rung in self.attrs.get("rungs", ()))

    @property
    def outcome(self) -> str | None:
        """How it ended; None: it has not."""
        return self.attrs.get("end", {}).get("outcome")

    @property
    def reason(self) -> str:
        """Why."""
        return self.attrs.get("end", {}).get("reason", "")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A study and the diaries at one moment, for comparison with a later one."""

    trials: Mapping[str, Trial]
    diaries: Mapping[str, list[dict[str, Any]]]


@dataclass(kw_only=True)
class Verdict:
    """What was found.

    Attributes:
        broken: Each broken promise.
        counts: Of what was compared.
    """

    broken: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


# A SQLite file, or the URL of a PostgreSQL database.
Study = Path | str


def look(study: Study, diaries: Path) -> Seen:
    """Read both as they are now; the diaries last, so that they know at least as much."""
    there = isinstance(study, str) or study.is_file()
    trials = {trial.label: trial for trial in read_study(study)} if there else {}
    return Seen(trials=trials, diaries=read_diaries(diaries))


def read_diaries(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of each trial."""
    return {
        path.name: [json.loads(line) for line in whole_lines(path)]
        for path in sorted(folder.iterdir())
    }


def read_study(study: Study) -> Iterator[Trial]:
    """The trials of both studies, straight from the tables."""
    base: Any
    if isinstance(study, str):
        base = psycopg.connect(study)
    else:
        # A hot journal of a killed writer must be rolled back, so not read-only.
        base = sqlite3.connect(study, timeout=60)
    with closing(base):
        attrs: dict[int, dict[str, Any]] = {}
        for trial_id, key, value in base.execute(
            "select trial_id, key, value_json from trial_user_attributes"
        ):
            attrs.setdefault(trial_id, {})[key] = json.loads(value)
        scores: dict[int, list[float]] = {}
        for trial_id, score in base.execute(
            "select trial_id, intermediate_value from trial_intermediate_values order by step"
        ):
            scores.setdefault(trial_id, []).append(score)
        values = dict(base.execute("select trial_id, value from trial_values"))
        rows = base.execute(
            "select trial_id, study_name, number, state from trials join studies using (study_id)"
        ).fetchall()
    for trial_id, study, number, state in rows:
        own = attrs.get(trial_id, {})
        stem = f"t{number:03d}"
        if own["role"] == "control":
            stem = "control" + (str(number + 1) if number else "")
        yield Trial(
            study=study,
            number=number,
            label=f"{stem}-{own['config_hash']}",
            state=state,
            value=values.get(trial_id),
            attrs=own,
            # One that has no rung yet was not acknowledged, and may come again.
            scores=tuple(scores.get(trial_id, ())[: len(own.get("rungs", ()))]),
        )


def check_since(before: Seen, after: Seen) -> Verdict:
    """Nothing that stood in the study before a fault is gone or different after it."""
    verdict = Verdict()
    for label, old in before.trials.items():
        new = after.trials.get(label)
        if new is None:
            verdict.broken.append(f"{label} is gone")
            continue
        if new.scores[: len(old.scores)] != old.scores:
            verdict.broken.append(f"{label} had the scores {old.scores}, now {new.scores}")
        if new.attrs["params"] != old.attrs["params"]:
            verdict.broken.append(f"{label} has other parameters")
        verdict.counts["scores kept"] += len(old.scores)
        if old.outcome is None:
            continue
        verdict.counts["ends kept"] += 1
        if (new.attrs, new.value) != (old.attrs, old.value):
            verdict.broken.append(f"{label} had ended and was changed")
        if after.diaries.get(label) != before.diaries.get(label):
            verdict.broken.append(f"{label} had ended and trained again")
    return verdict


def check_study(study: Study, diaries: Path, *, interval: int) -> Verdict:
    """The promises, whatever happened.

    Args:
        study: Where the study is.
        diaries: What the trainer wrote.
        interval: Steps from one checkpoint to the next.
    """
    verdict = Verdict()
    trials = list(read_study(study))
    for name in {trial.study for trial in trials}:
        numbers = sorted(trial.number for trial in trials if trial.study == name)
        if numbers != list(range(len(numbers))):
            verdict.broken.append(f"the numbers of {name} are {numbers}")
    by_label = {trial.label: trial for trial in trials}
    if len(by_label) != len(trials):
        verdict.broken.append("a label stands twice")
    for label, lines in read_diaries(diaries).items():
        if label not in by_label:
            verdict.broken.append(f"{label} trained and is not in the study")
            continue
        _check_scores(by_label[label], lines, verdict)
        _check_course(by_label[label], lines, interval, verdict)
    return verdict


def _check_scores(trial: Trial, lines: list[dict[str, Any]], verdict: Verdict) -> None:
    """Each score that the trainer was told is taken stands, and is one that it gave by then."""
    given: dict[int, list[float]] = {}
    settled: dict[int, list[float]] = {}
    for line in lines:
        if line["what"] == "asked":
            given.setdefault(line["step"], []).append(line["value"])
        elif line["what"] == "acknowledged" and line["step"] not in settled:
            settled[line["step"]] = list(given[line["step"]])
    recorded = dict(zip(trial.steps, trial.scores, strict=False))
    rungs = tuple(rung["metrics"][SCORE] for rung in trial.attrs.get("rungs", ()))
    if rungs != trial.scores:
        verdict.broken.append(f"{trial.label} has {trial.scores} where its rungs have {rungs}")
    verdict.counts["acknowledged scores"] += len(settled)
    for step, choices in settled.items():
        if step not in recorded:
            verdict.broken.append(f"{trial.label} lost its acknowledged score of step {step}")
        elif recorded[step] not in choices:
            verdict.broken.append(f"{trial.label} has {recorded[step]} at {step}, not {choices}")
    for step in recorded.keys() - given.keys():
        verdict.broken.append(f"{trial.label} has a score of step {step} that nobody gave")
    if trial.outcome == "finished" and trial.value != trial.scores[-1]:
        verdict.broken.append(f"{trial.label} ended with {trial.value}, not {trial.scores[-1]}")


def _check_course(
    trial: Trial, lines: list[dict[str, Any]], interval: int, verdict: Verdict
) -> None:
    """What was trained again, by whom, and when."""
    done, last, attempt, past = False, 0, "", set()
    corrupted = False
    for line in lines:
        what, step = line["what"], line["step"]
        if line["attempt"] != attempt:
            past.add(attempt)
            if line["attempt"] in past:
                verdict.broken.append(f"{trial.label}: two processes trained it at once")
            attempt = line["attempt"]
            verdict.counts["attempts"] += 1
            repeated = last - step
            verdict.counts["repeated steps"] += max(0, repeated)
            # Of a checkpoint that was spoilt on purpose, the one before holds.
            if repeated > interval * (2 if corrupted else 1):
                verdict.broken.append(f"{trial.label} went back from {last} to {step}")
        if what == "step":
            last = step
            if done:
                verdict.broken.append(f"{trial.label} was trained again after its last score")
        corrupted = corrupted or what == "corrupted"
        is_last = trial.outcome == "finished" and step == trial.steps[-1]
        done = done or (what == "acknowledged" and is_last)


def check_finished(study: Study, diaries: Path, trials_dir: Path, *, num_steps: int) -> Verdict:
    """What must hold of trials that finished: every step trained, a whole checkpoint left."""
    verdict, lines = Verdict(), read_diaries(diaries)
    for trial in read_study(study):
        if trial.outcome is None:
            verdict.broken.append(f"{trial.label} has not ended")
        if trial.outcome != "finished":
            continue
        verdict.counts["finished"] += 1
        own = lines.get(trial.label, [])
        steps = {line["step"] for line in own if line["what"] == "step"}
        if steps != set(range(1, num_steps + 1)):
            verdict.broken.append(f"{trial.label} trained only the steps {sorted(steps)}")
        checkpoint = Path(trial.attrs["rungs"][-1]["checkpoint"])
        if checkpoint != (trials_dir / trial.label / "latest.pth").resolve():
            verdict.broken.append(f"{trial.label} names the checkpoint {checkpoint}")
        elif json.loads(checkpoint.read_text())["step"] != num_steps:
            verdict.broken.append(f"{trial.label} left no checkpoint of step {num_steps}")
    return verdict


def check_mlflow(database: Path, study: Study, diaries: Path) -> Verdict:
    """Every point that the trainer got rid of is in MLflow, once, and no other."""
    verdict = Verdict()
    base = sqlite3.connect(database, timeout=60)
    try:
        runs: dict[str, list[tuple[str, str]]] = {}
        for run, label, status in base.execute(
            "select runs.run_uuid, tags.value, status from runs join tags using (run_uuid)"
            " where tags.key = 'label'"
        ):
            runs.setdefault(label, []).append((run, status))
        points: dict[str, list[tuple[str, int, float]]] = {}
        for run, key, step, value in base.execute(
            "select run_uuid, key, step, value from metrics where key in (?, ?)", (LOSS, SCORE)
        ):
            points.setdefault(run, []).append((key, step, value))
    finally:
        base.close()
    ends = {trial.label: trial.outcome for trial in read_study(study)}
    if set(runs) != {*ends, "sweep"}:
        verdict.broken.append(f"runs and trials differ: {set(runs) ^ {*ends, 'sweep'}}")
    for label, lines in read_diaries(diaries).items():
        if len(runs.get(label, ())) != 1:
            verdict.broken.append(f"{label} has {len(runs.get(label, ()))} runs")
            continue
        ((run, status),) = runs[label]
        if ends.get(label) == "finished" and status != "FINISHED":
            verdict.broken.append(f"{label} finished, its run is {status}")
        _check_points(label, lines, points.get(run, []), verdict)
    return verdict


def _check_points(
    label: str,
    lines: list[dict[str, Any]],
    points: list[tuple[str, int, float]],
    verdict: Verdict,
) -> None:
    keys = {"step": LOSS, "asked": SCORE}
    given: dict[tuple[str, int], set[float]] = {}
    due: set[tuple[str, int]] = set()
    for line in lines:
        if line["what"] in keys:
            given.setdefault((keys[line["what"]], line["step"]), set()).add(line["value"])
        elif line["what"] in ("logged", "acknowledged"):
            due.add((LOSS if line["what"] == "logged" else SCORE, line["step"]))
    there = Counter((key, step) for key, step, _ in points)
    verdict.counts["points"] += len(due)
    verdict.broken += [f"{label} lacks {place} in MLflow" for place in sorted(due - there.keys())]
    verdict.broken += [
        f"{label} has {place} {count} times in MLflow"
        for place, count in there.items()
        if count > 1
    ]
    verdict.broken += [
        f"{label} has {value} at {(key, step)} in MLflow, which nobody gave"
        for key, step, value in points
        if value not in given.get((key, step), ())
    ]
