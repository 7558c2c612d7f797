"""The training function of a sweep: a spec's train section and a trial's parameters to a config.

`resolve` is the one place where that config comes about: a trial trains from it, `plan` checks it
and `export` writes the overrides that it applied.
"""

import contextlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmcv import Config

    from sweeps.record import ParamValue
    from sweeps.spec import SweepSpec
    from sweeps.trial import Report

CONFIG_NAME = "config.py"


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
        """Train one trial."""
        from aqr_model.train import train

        config = resolve(self.base, self.trial_overrides(params))
        workdir = workdir.resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        config.dump(str(workdir / CONFIG_NAME))
        report.artifact(workdir / CONFIG_NAME)
        with contextlib.chdir(self.root):
            train(config, workdir=workdir, report=report, resume_from=resume_from)

    def trial_overrides(self, params: "Mapping[str, ParamValue]") -> dict[str, Any]:
        """All that a trial trains with and the base config does not say, in order of application.

        Args:
            params: Knob names or dotted config keys with their values.
        """
        from aqr_model.knobs import to_overrides

        return {**self.overrides, **to_overrides(params)}


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
        # Sums depend on how they are split between threads: an exported config keeps the number.
        "num_threads": spec.resources.cpus,
    }
    if has_key(base, "runner.max_epochs"):  # the same number for trainers that read it there
        overrides["runner.max_epochs"] = epochs
    if spec.train.load_from is not None:
        overrides["load_from"] = spec.train.load_from
    return overrides


def resolve(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> "Config":
    """Apply overrides to a base config; the base is left as it is.

    Raises:
        KeyError, TypeError: If an override leads through something that is neither a dict nor a
            list.
    """
    # Importing the package first quiets what the old libraries say about themselves.
    from aqr_model.config import apply_overrides

    # isort: split
    from mmcv import Config

    config = Config(deepcopy(dict(base)))
    apply_overrides(config, overrides)
    return config


def load_base(path: Path) -> dict[str, Any]:
    """Read a config file with all that it inherits, as plain dicts and lists.

    Raises:
        ConfigError: If a file assigns a name twice, or a type is registered nowhere.
    """
    from aqr_model.config import load_config, require_known_types

    config = load_config(path)
    require_known_types(config)
    return config._cfg_dict.to_dict()


def has_key(config: Mapping[str, Any], key: str) -> bool:
    """Whether a config has a dotted key; a number steps into a list."""
    node: Any = config
    for part in key.split("."):
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif _is_index(node, part):
            node = node[int(part)]
        else:
            return False
    return True


def _is_index(node: Any, part: str) -> bool:
    is_list = isinstance(node, Sequence) and not isinstance(node, str)
    return is_list and part.isdigit() and int(part) < len(node)
