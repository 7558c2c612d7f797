"""Whether a training can start from a config, and what of the config does nothing."""

from pathlib import Path

from mmcv import Config

from aqr_model.engine.weights.pretrained import Wanted
from aqr_model.preflight.datasets import check_datasets
from aqr_model.preflight.findings import Findings
from aqr_model.preflight.keys import check_idle, check_values
from aqr_model.preflight.model import check_model
from aqr_model.preflight.sensors import check_sensors
from aqr_model.preflight.source import Places
from aqr_model.preflight.training import (
    check_hooks,
    check_length,
    check_object_sampling,
    check_optimizer,
    check_precision,
    check_rates,
    check_start,
    check_weights,
)


def preflight(
    cfg: Config, *, source: Path | None = None, files: bool = True, in_sweep: bool = False
) -> Findings:
    """Find out what a training would meet, before anything starts.

    The model is built without memory for its weights, the datasets without their data: that takes
    about a second.

    Args:
        cfg: A whole training config; it stays as it is.
        source: The config's file, for the places of keys; by default the one that `cfg` was read
            from.
        files: What the config names must be there: data, weights. False where they lie elsewhere.
        in_sweep: A sweep starts it: its trials go on by themselves, and not from `resume_from`.

    Returns:
        All that was found.
    """
    findings, config = Findings(), dict(cfg.items())
    source = source or (Path(cfg.filename) if cfg.filename else None)
    check_values(config, findings)
    check_idle(config, findings, source)
    check_datasets(config, findings, splits=("train", "val"), files=files)
    check_sensors(cfg, findings)
    check_length(cfg, findings)
    check_object_sampling(cfg, findings)
    check_hooks(cfg, findings)
    check_start(cfg, findings, files=files, in_sweep=in_sweep)
    check_rates(cfg, findings)
    model = check_model(config, findings, files=files)
    if model is not None:
        check_optimizer(model, cfg, findings)
        if isinstance(cfg.get("load_from"), str):
            wanted = Wanted.of_config(cfg)
            check_weights(model, Path(cfg.load_from), wanted, "load_from", findings, files=files)
    return findings.placed(Places(source))


def preflight_of_scoring(
    cfg: Config, checkpoint: Path, wanted: Wanted, *, source: Path | None = None
) -> Findings:
    """Find out what a scoring would meet, before anything starts.

    Args:
        cfg: A config; what a training alone needs may be missing.
        checkpoint: The weights to be scored.
        wanted: Of that file.
        source: See `preflight`.
    """
    findings, config = Findings(), dict(cfg.items())
    check_values(config, findings, of_scoring=True)
    check_datasets(config, findings, splits=("val",))
    check_sensors(cfg, findings, ("val",))
    check_precision(cfg, findings)
    model = check_model(config, findings, files=False)
    if model is not None:
        check_weights(model, checkpoint, wanted, "the checkpoint", findings)
    return findings.placed(Places(source or (Path(cfg.filename) if cfg.filename else None)))
