"""The training function of a sweep: a spec's train section and a trial's parameters to a config.

`resolve` is the one place where that config comes about: a trial trains from it, `plan` checks it
and `export` writes the overrides that it applied.
"""

import contextlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmcv import Config

    from sweeps.record import ParamValue
    from sweeps.seat import Seat
    from sweeps.spec import SweepSpec
    from sweeps.trial import Report

CONFIG_NAME = "config.py"
# All processes of a gang have started by then; they have only to find each other.
JOIN_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class CmtTraining:
    """Trains CMT from a base config; picklable, and the same on every node.

    The base config travels as values, not as a path: no node needs the file, and an edit under way
    changes no trial.

    Attributes:
        base: The base config as plain dicts and lists.
        overrides: What the sweep says for all of its trials, dotted keys to values.
        root: Where the config's relative paths lead.
    """

    base: Mapping[str, Any]
    overrides: Mapping[str, Any]
    root: Path

    def __call__(
        self,
        params: "Mapping[str, ParamValue]",
        *,
        report: "Report",
        workdir: Path,
        resume_from: Path | None,
    ) -> None:
        """Train one trial; in a gang, the part of this process in it.

        Raises:
            TrialPreempted: If a process was told to leave; the state is saved.
            PeerFailed: In a process of a gang that did not fail by itself.
        """
        from aqr_model.engine.distributed import WorkerFailed
        from aqr_model.train import Halted, train
        from sweeps.seat import current_seat, must_leave
        from sweeps.training import PeerFailed, TrialPreempted

        config = resolve(self.base, self.trial_overrides(params))
        workdir, seat = workdir.resolve(), current_seat()
        if seat.rank == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            config.dump(str(workdir / CONFIG_NAME))
            report.artifact(workdir / CONFIG_NAME)
        with contextlib.chdir(self.root), process_group(seat):
            try:
                train(
                    config,
                    workdir=workdir,
                    report=report if seat.rank == 0 else None,
                    resume_from=resume_from,
                    halts=must_leave,
                )
            except Halted as halted:
                raise TrialPreempted(str(halted)) from halted
            except WorkerFailed as failure:
                raise PeerFailed(str(failure)) from failure

    def trial_overrides(self, params: "Mapping[str, ParamValue]") -> dict[str, Any]:
        """All that a trial trains with and the base config does not say, in order of application.

        Args:
            params: Knob names or dotted config keys with their values.

        Returns:
            Dotted keys with values; what a key with dots in a part of it sets stands in a dict.
        """
        from aqr_model.knobs import to_overrides
        from aqr_model.preflight.dotted import addressed

        return addressed({**self.overrides, **to_overrides(params)}, self.base)


def build_training(spec: "SweepSpec", base: Mapping[str, Any], *, root: Path) -> CmtTraining:
    """The training function of a sweep.

    Args:
        spec: The sweep.
        base: Its base config, see `load_base`.
        root: Where relative paths lead.
    """
    return CmtTraining(base=base, overrides=sweep_overrides(spec, base), root=root)


def sweep_overrides(spec: "SweepSpec", base: Mapping[str, Any]) -> dict[str, Any]:
    """What a spec says for all of its trials, as dotted config keys."""
    fidelities = spec.stopping.fidelities
    epochs = int(spec.train.epochs) if spec.train.epochs.is_integer() else spec.train.epochs
    overrides = {
        **spec.train.overrides,
        "total_epochs": epochs,
        "evaluation.rungs": [fraction for fraction, _ in fidelities],
        "evaluation.val_shares": [share for _, share in fidelities],
        # Of each process. Sums depend on how they are split: an exported config keeps the number.
        "num_threads": spec.resources.cpus // max(1, spec.resources.gpus),
    }
    if "max_epochs" in (base.get("runner") or {}):  # for trainers that read it there
        overrides["runner.max_epochs"] = epochs
    if spec.train.load_from is not None:
        overrides["load_from"] = spec.train.load_from
    return overrides


@contextlib.contextmanager
def process_group(seat: "Seat") -> Iterator[None]:
    """Join the other processes of a gang in torch's process group; alone there is nothing to join.

    Args:
        seat: Of this process.
    """
    if seat.size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(seat.local_rank)
        backend = "nccl"
    # Over the socket that rank 0 already listens at: nobody can take the port in between.
    store = dist.TCPStore(
        seat.address,
        seat.port,
        seat.size,
        is_master=seat.rank == 0,
        timeout=JOIN_TIMEOUT,
        master_listen_fd=seat.listener,
    )
    dist.init_process_group(backend, store=store, rank=seat.rank, world_size=seat.size)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def resolve(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> "Config":
    """Apply overrides to a base config; the base is left as it is.

    Raises:
        KeyError, TypeError: If an override leads through something that is neither a dict nor a
            list.
    """
    # Importing the package first quiets what the old libraries say about themselves.
    from aqr_model.preflight.reading import apply_overrides

    # isort: split
    from mmcv import Config

    config = Config(deepcopy(dict(base)))
    apply_overrides(config, overrides)
    return config


def load_base(path: Path) -> dict[str, Any]:
    """Read a config file with all that it inherits, as plain dicts and lists.

    Raises:
        ConfigError: If it does not load, or a file assigns a name twice.
        FileNotFoundError: If a file is not there.
    """
    from aqr_model.preflight.reading import load_config

    return load_config(path)._cfg_dict.to_dict()
