"""What a sweep will take on this cluster: the time of a training, the slots, the forecast."""

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from launch.opening import TargetError

if TYPE_CHECKING:
    from launch.opening import Opened
    from sweeps.forecast import Forecast
    from sweeps.record import SweepRecord
    from sweeps.spec import SweepSpec


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The time of one full training.

    Attributes:
        seconds: Mean over the trials.
        num_trials: Finished trials behind it; 0: the spec gives it.
        source: The sweep that measured it, or the spec.
    """

    seconds: float
    num_trials: int
    source: Path

    @property
    def hours(self) -> float:
        """The same in hours."""
        return self.seconds / 3600


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a sweep will take on this cluster.

    Attributes:
        forecast: None where neither a number of trials nor a training time is known.
        speed: None where nothing tells it.
        slots: Trials at once; None where the cluster cannot be asked.
        excess: Why that is more than the budget; None if it is not, or not known.
    """

    forecast: "Forecast | None"
    speed: Speed | None
    slots: int | None
    excess: str | None


def expect(
    opened: "Opened", speed: Speed | None, num_samples: int | None, *, slots: int | None = None
) -> Expectation:
    """Simulate the sweep with its own rules; see `sweeps.forecast`.

    Args:
        opened: The checked spec.
        speed: A measured time of a training.
        num_samples: Training samples, if the info file could be read.
        slots: Trials at once, where the caller knows; else the cluster is asked.
    """
    from sweeps.forecast import excess, forecast

    spec = opened.spec
    speed = speed or given_speed(opened, num_samples)
    slots = slots or cluster_slots(spec)
    hours = None if speed is None else speed.hours
    is_bounded = spec.budget.trials is not None or hours is not None
    return Expectation(
        forecast=forecast(spec, full_hours=hours, slots=slots or 1) if is_bounded else None,
        speed=speed,
        slots=slots,
        excess=None if hours is None else excess(spec, full_hours=hours, slots=slots or 1),
    )


def foresee(
    opened: "Opened", nodes: "Sequence[Mapping[str, float]]"
) -> tuple[Expectation | None, str]:
    """What a sweep will take on a cluster that is asked from elsewhere.

    Relative paths lead from the current directory, which the cluster may or may not share.

    Args:
        opened: The checked spec.
        nodes: What each node of the cluster has.

    Returns:
        expectation: None where nothing of it can be told from here.
        reason: Why not.
    """
    from sweeps.placing import misfit, num_trials_fitting

    spec = opened.spec
    num_samples = count_samples(opened)
    speed = measured_speed(spec) or given_speed(opened, num_samples)
    if (reason := misfit(spec.resources, nodes)) is not None:
        return None, reason  # nodes may come when they are asked for
    if speed is None:
        return None, _no_speed(spec)
    fitting, wish = num_trials_fitting(spec.resources, nodes), spec.resources.concurrent
    slots = fitting if wish is None else min(wish, fitting)
    return expect(opened, speed, num_samples, slots=slots), ""


def _no_speed(spec: "SweepSpec") -> str:
    if spec.train.seconds_per_iter is None:
        return "no training like it has been measured here, and train.seconds_per_iter is not given"
    return (
        "the iterations of an epoch cannot be counted here, since the training data are elsewhere"
        " or the dataset repeats or filters them"
    )


def refuse_over_budget(expectation: Expectation) -> None:
    """Say before anything starts that a sweep does not fit into its own budget.

    Raises:
        TargetError: If it does not.
    """
    if expectation.excess is not None:
        text = expectation.excess
        raise TargetError(f"Nothing was started: {text}.")


def given_speed(opened: "Opened", num_samples: int | None) -> Speed | None:
    """The time of a full training by the spec's `seconds_per_iter`."""
    train = opened.spec.train
    steps = steps_per_epoch(opened, num_samples)
    if train.seconds_per_iter is None or steps is None:
        return None
    seconds = train.seconds_per_iter * max(1, round(steps * train.epochs))
    return Speed(seconds=seconds, num_trials=0, source=opened.source)


def cluster_slots(spec: "SweepSpec") -> int | None:
    """How many trials run at once on the cluster at RAY_ADDRESS, else on this machine.

    Returns:
        None if the cluster does not answer.
    """
    from sweeps.placing import num_trials_fitting

    wish = spec.resources.concurrent
    nodes = _cluster_nodes() if os.environ.get("RAY_ADDRESS") else [_this_machine()]
    if nodes is None:
        return wish
    fitting = max(1, num_trials_fitting(spec.resources, nodes))
    return fitting if wish is None else min(wish, fitting)


def cluster_misfit(spec: "SweepSpec") -> str | None:
    """Why not even one trial fits on the cluster at RAY_ADDRESS, else on this machine.

    Returns:
        None if one does, or if the cluster does not answer.
    """
    from sweeps.placing import misfit

    if os.environ.get("RAY_ADDRESS"):
        nodes = _cluster_nodes()
        reason = None if nodes is None else misfit(spec.resources, nodes)
        return None if reason is None else f"This will not start: {reason}."
    reason = misfit(spec.resources, [_this_machine()])
    if reason is None:
        return None
    return (
        f"On this machine alone this will not start: {reason}. RAY_ADDRESS names a cluster to run"
        " on, and `aqr-sweep submit` sends the sweep to one."
    )


def _this_machine() -> dict[str, float]:
    """What Ray will count here."""
    import torch
    from ray._private.utils import get_num_cpus

    return {"CPU": float(get_num_cpus()), "GPU": float(torch.cuda.device_count())}


def _cluster_nodes() -> list[dict[str, float]] | None:
    import logging

    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError):
        return None  # the start of the sweep will say what is wrong
    try:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def measured_speed(spec: "SweepSpec") -> Speed | None:
    """The time of a full training, from this sweep or a sibling with the same train section."""
    from launch.opening import COPY_NAME, read_spec
    from sweeps.section import SpecError

    siblings = sorted(spec.directory.parent.glob(f"*/{COPY_NAME}"))
    for directory in (spec.directory, *(path.parent for path in siblings)):
        if not (directory / COPY_NAME).is_file():
            continue
        try:
            other = read_spec(directory)
        except SpecError:
            continue  # of another version; it says nothing about this one
        if (other.train.content(), other.resources) == (spec.train.content(), spec.resources):
            times = list(_finished_seconds(other))
            if times:
                return Speed(seconds=fmean(times), num_trials=len(times), source=directory)
    return None


def steps_per_epoch(opened: "Opened", num_samples: int | None) -> int | None:
    """Optimizer steps of an epoch, as the trainer counts them (`aqr_model.engine.plan`)."""
    from launch.training import resolve

    config = resolve(opened.training.base, opened.training.overrides)
    data = config.get("data")
    if num_samples is None or data is None:
        return None
    batches = (config.get("optimizer_config") or {}).get("cumulative_iters", 1)
    processes = max(1, int(opened.spec.resources.gpus))
    return num_samples // (data["samples_per_gpu"] * batches * processes)


def count_samples(opened: "Opened") -> int | None:
    """Training samples by the info file; None without it, or if the dataset repeats or filters."""
    from launch.training import resolve

    train = resolve(opened.training.base, opened.training.overrides).data.train
    if "dataset" in train or "ann_file" not in train:
        return None
    if not Path(train.ann_file).is_file():  # it lies on the cluster
        return None
    try:
        with Path(train.ann_file).open("rb") as file:
            infos = pickle.load(file)["infos"]
    # What a broken pickle raises depends on where it breaks.
    except Exception as error:
        raise TargetError(
            f"{train.ann_file} must be an info file in the form of mmdet3d 1.0, but cannot be read"
            f" ({error!r}): build it with `python -m aqr_model.data.prepare`."
        ) from error
    return len(infos) // int(train.get("load_interval", 1))


def _finished_seconds(spec: "SweepSpec") -> Iterator[float]:
    from sweeps.record import read_sweep
    from sweeps.storage import StorageError

    try:
        record: SweepRecord = read_sweep(spec.storage_url, spec.name)
    except (FileNotFoundError, KeyError, StorageError):
        return  # it cannot be asked now
    yield from (trial.seconds for trial in record.started if trial.outcome == "finished")
