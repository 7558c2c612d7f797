"""The sections of a sweep spec: what each key means, its default, and which values it takes."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field

from sweeps.database_url import wrong_url
from sweeps.section import Section, got, unknown

# Seeds of the control where it has to give the noise and the spec does not say how many.
NOISE_SEEDS = 3

Sampler = Literal["gp", "tpe", "random", "grid", "cmaes"]
Metric = Literal["NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE"]
AlsoMetric = Literal["NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE", "AP", "time"]
Mode = Literal["max", "min"]
# With more objectives than these nearly every trial is on the front.
MAX_ALSO = 3
# A week; the timer that watches cannot be set to any length of time.
MAX_SILENCE_MINUTES = 7 * 24 * 60
# The classes of nuScenes' detection task.
CLASSES = (
    "car",
    "truck",
    "bus",
    "trailer",
    "construction_vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "barrier",
)


class TrainSpec(Section):
    """What is trained: a config file, what it starts from, how long.

    `seconds_per_iter` is for the forecast alone, where nothing has been measured yet.
    """

    config: str = Field(min_length=1)
    load_from: str | None = None
    epochs: float = Field(gt=0)
    overrides: dict[str, Any] = Field(default_factory=dict)
    seconds_per_iter: float | None = Field(default=None, gt=0)

    def content(self) -> dict[str, Any]:
        """What makes a difference to a training, as JSON values."""
        return self.model_dump(mode="json", exclude={"seconds_per_iter"})


class AlsoSpec(Section):
    """One more objective: a metric, the mean AP of some classes, or the training time.

    `mode` may be left out, since a metric has but one right one. Noise: the spread between seeds;
    null: the control measures it.
    """

    metric: AlsoMetric
    classes: tuple[str, ...] | None = Field(default=None, strict=False)
    mode: Mode | None = None
    noise: float | None = Field(default=None, ge=0)

    def rules(self) -> Iterator[tuple[str, str]]:
        """AP is of classes, and each objective has its right mode."""
        if self.mode not in (None, self.right_mode):
            yield "mode", f"must be {self.right_mode!r} for {self.metric}, {got(self.mode)}"
        if self.metric != "AP":
            if self.classes is not None:
                yield "classes", f"must not be given with {self.metric}: it is for metric AP"
            return
        names = list(self.classes or ())
        if not names:
            message = "must be given with metric AP: the classes whose mean it is"
            yield "classes", message if self.classes is None else f"{message}, {got(names)}"
        for name in dict.fromkeys(names):
            if name not in CLASSES:
                yield "classes", unknown("class", name, CLASSES)
            elif names.count(name) > 1:
                yield "classes", f"must name each class once, {got(name)} {names.count(name)} times"

    @property
    def right_mode(self) -> Mode:
        """Scores are maximised, errors and the training time minimised."""
        return _right_mode(self.metric)


class ObjectiveSpec(Section):
    """What is optimised, and the spread it shows between seeds; null: the control measures it.

    With `also` there are several objectives, of which `metric` is the first.
    """

    metric: Metric = "NDS"
    mode: Mode = "max"
    noise: float | None = Field(default=None, ge=0)
    also: tuple[AlsoSpec, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        """Errors are minimised, scores maximised."""
        right = _right_mode(self.metric)
        if self.mode != right:
            yield "mode", f"must be {right!r} for {self.metric}, {got(self.mode)}"
        if len(self.also) > MAX_ALSO:
            yield (
                "also",
                f"must be no more than {MAX_ALSO} objectives, {got(len(self.also))} of them",
            )

    @property
    def key(self) -> str:
        """The metric's key in a trial's reports."""
        return f"val/{self.metric.lower()}"


def _right_mode(metric: str) -> Mode:
    return "max" if metric in ("NDS", "mAP", "AP") else "min"


class KnownPoint(Section):
    """A point evaluated outside this sweep: its parameters, its score and how it was trained.

    Only a point that `import` wrote has a source; it holds every parameter of its run, of which
    those of the space count. `fidelity` is the share of this sweep's training that it had,
    `control` the score of its own code with AQR off after the same training.
    """

    params: dict[str, float | int | bool | str]
    value: float
    epochs: float | None = Field(default=None, gt=0, strict=False)
    fidelity: float | None = Field(default=None, gt=0, strict=False)
    code: Literal["same", "other"] | None = None
    control: float | None = None
    semantics: Literal["right", "legacy"] | None = None
    source: str | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        """The length of its training is said once."""
        if self.epochs is not None and self.fidelity is not None:
            yield "fidelity", f"must not be given with epochs ({self.epochs:g}), which says it"

    @property
    def provenance(self) -> Literal["same", "other"]:
        """Whose code trained it: this one is named, or known by the meaning of its maps."""
        return self.code or ("same" if self.semantics == "right" else "other")

    def share_of(self, epochs: float) -> float:
        """How long it was trained, as a share of so many epochs; 1 if nothing says it."""
        if self.epochs is not None:
            return self.epochs / epochs
        return 1.0 if self.fidelity is None else self.fidelity

    def is_foreign(self, epochs: float) -> bool:
        """Whether other code trained it, or this one not for so many epochs."""
        return self.provenance == "other" or self.share_of(epochs) != 1.0


class SearchSpec(Section):
    """How the next trial is chosen."""

    sampler: Sampler = "gp"
    seed: int = Field(default=0, ge=0, lt=2**32)
    startup: int | None = Field(default=None, ge=1)


class StoppingSpec(Section):
    """When hopeless trials end, and the rungs at which every trial is scored."""

    rule: Literal["safe", "fast", "none"] = "safe"
    rungs: tuple[float, ...] = Field(default=(0.25, 0.5, 1.0), strict=False)
    val_shares: tuple[float, ...] | None = Field(default=None, strict=False)

    def rules(self) -> Iterator[tuple[str, str]]:
        """Rungs lead up to a full run, scored on all scenes."""
        rungs = list(self.rungs)
        if not rungs or not all(0 < rung <= 1 for rung in rungs):
            yield "rungs", f"must be shares of the budget in (0, 1], {got(rungs)}"
        elif any(a >= b for a, b in pairwise(rungs)):
            yield "rungs", f"must increase strictly, {got(rungs)}"
        elif rungs[-1] != 1:
            yield "rungs", f"must end with 1, the full budget, {got(rungs)}"
        if self.val_shares is None:
            return
        shares = list(self.val_shares)
        if len(shares) != len(rungs):
            yield "val_shares", f"must be as many as rungs ({len(rungs)}), {got(shares)}"
        if not shares or not all(0 < share <= 1 for share in shares):
            yield "val_shares", f"must be shares of the scenes in (0, 1], {got(shares)}"
        elif shares[-1] != 1:
            yield "val_shares", f"must end with 1, all scenes, {got(shares)}"

    @property
    def fidelities(self) -> tuple[tuple[float, float], ...]:
        """(share of the budget, share of the validation scenes) of each rung."""
        shares = self.val_shares or (1.0,) * len(self.rungs)
        return tuple(zip(self.rungs, shares, strict=True))


class ControlSpec(Section):
    """The fine-tuning with AQR off, with so many seeds."""

    seeds: int = Field(ge=1)


class FinalistsSpec(Section):
    """The best trials of the search, trained again with new seeds."""

    top: int = Field(ge=1)
    seeds: int = Field(ge=1)


class BudgetSpec(Section):
    """What the sweep may spend; the first limit that is reached ends it.

    `trials` counts searched trials alone. `gpu_hours` and `hours` count everything: the control,
    finalists, and what a kill threw away.
    """

    trials: int | None = Field(default=None, ge=1)
    gpu_hours: float | None = Field(default=None, gt=0)
    hours: float | None = Field(default=None, gt=0)

    def rules(self) -> Iterator[tuple[str, str]]:
        """A sweep must end."""
        if self.trials is None and self.gpu_hours is None and self.hours is None:
            yield "trials", "must be given, or gpu_hours, or hours"


class ResourcesSpec(Section):
    """What one trial takes, and how many run at once (null: as many as fit).

    With several GPUs a trial has one process for each, and the CPUs are shared out between them. A
    trial that loses a process is tried again from its newest checkpoint, at most `retries` times.
    One that reports nothing for `silence_minutes` hangs, and loses its process (null: never).
    """

    gpus: int = Field(default=0, ge=0)
    cpus: int = Field(default=1, ge=1)
    concurrent: int | None = Field(default=None, ge=1)
    retries: int = Field(default=2, ge=0)
    silence_minutes: float | None = Field(default=60.0, gt=0, le=MAX_SILENCE_MINUTES, strict=False)

    def rules(self) -> Iterator[tuple[str, str]]:
        """Each process has the same number of CPUs."""
        if self.gpus > 1 and self.cpus % self.gpus:
            yield (
                "cpus",
                f"must be a multiple of gpus ({self.gpus}), as many for each process, "
                f"{got(self.cpus)}",
            )


class TrackingSpec(Section):
    """The MLflow server; null: a SQLite file beside the sweeps."""

    uri: str | None = None


class StorageSpec(Section):
    """Where sweeps lie; `study` is a database URL, null: a SQLite file in the sweep's directory."""

    path: str = "runs"
    study: str | None = Field(default=None, repr=False)  # it may hold a password

    def rules(self) -> Iterator[tuple[str, str]]:
        """A database that can be reached from here."""
        if self.study is not None and (wrong := wrong_url(self.study)):
            yield "study", wrong
