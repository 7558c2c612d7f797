"""What a training needs beside its model and its data: length, rates, precision, weights."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from torch import nn

from aqr_model.engine.config_keys import NUMBER_ABOVE_0, NUMBER_FROM_0, WHOLE_ABOVE_0
from aqr_model.engine.evaluator import set_epoch
from aqr_model.engine.hooks import averaging_hook
from aqr_model.engine.object_sampling import sampling_epochs
from aqr_model.engine.optim.freezing import Frozen
from aqr_model.engine.optim.lr_schedule import Schedule, make_hooks
from aqr_model.engine.optim.param_groups import Rates, make_optimizer, matching_key
from aqr_model.engine.optim.precision import make_scaler, read_precision
from aqr_model.engine.plan import Plan, budget_epochs, make_plan
from aqr_model.engine.resuming import require_no_resume
from aqr_model.engine.weights.files import CheckpointError
from aqr_model.engine.weights.pretrained import Wanted, examine
from aqr_model.preflight.building import heard
from aqr_model.preflight.findings import Findings
from aqr_model.preflight.habits import idle_hooks

# The data are counted when they are read: what some length of a training allows is not refused.
_FEW_STEPS, _MANY_STEPS = 1, 10_000
_HOOKS = ("OptimizerHook", "GradientCumulativeOptimizerHook")
ENTRIES = "optimizer.paramwise_cfg.custom_keys"


def check_length(cfg: Config, findings: Findings) -> None:
    """Check the budget, the rungs and the intervals."""
    runner = cfg.get("runner") or {}
    total, other = cfg.get("total_epochs"), runner.get("max_epochs")
    if total and other and total != other:
        findings.warn("runner.max_epochs", f"is {other}, but `total_epochs` ({total}) decides.")
    if total is not None and not NUMBER_FROM_0.holds(total):
        return  # said where values are checked
    if not budget_epochs(cfg):
        instead = ""
        if (iterations := runner.get("max_iters")) is not None:
            instead = (
                f" `runner.max_iters` ({iterations}) is not read: divide it by the steps of an"
                " epoch, which are the samples of `data.train` by those of a step."
            )
        findings.refuse(
            "total_epochs",
            f"must be given, in epochs, but got {total}.{instead} Write `total_epochs = EPOCHS`.",
        )
        return
    if _can_be_planned(cfg):
        with refused(findings, "evaluation"):
            _plan(cfg, _MANY_STEPS)


def _can_be_planned(cfg: Config) -> bool:
    """Whether there is a length and a batch; else that is said where values are checked."""
    data = cfg.get("data")
    return (
        isinstance(data, Mapping)
        and WHOLE_ABOVE_0.holds(data.get("samples_per_gpu"))
        and NUMBER_ABOVE_0.holds(_epochs(cfg))
    )


def _epochs(cfg: Config) -> float:
    """The budget; 0 where it is none."""
    try:
        return budget_epochs(cfg)
    except (TypeError, ValueError):
        return 0.0


def _plan(cfg: Config, steps: int) -> Plan:
    """A plan of at least so many steps."""
    return make_plan(cfg, cfg.data.samples_per_gpu * math.ceil(steps / budget_epochs(cfg)))


def check_rates(cfg: Config, findings: Findings) -> None:
    """Check the policies of learning rate and momentum, the precision and the optimizer's hook."""
    with refused(findings, "lr_config"):
        make_hooks(cfg.get("lr_config"), None)
    with refused(findings, "momentum_config"):
        make_hooks(None, cfg.get("momentum_config"))
    check_precision(cfg, findings)
    hook = str((cfg.get("optimizer_config") or {}).get("type") or _HOOKS[0])
    if hook not in _HOOKS and "Fp16" not in hook:
        findings.warn(
            "optimizer_config.type",
            f"{hook} is not run: gradients are clipped by `grad_clip` and accumulated by"
            " `cumulative_iters`.",
        )


def check_precision(cfg: Config, findings: Findings) -> None:
    """Check that precision and loss scale can be had."""
    hook = cfg.get("optimizer_config") or {}
    if not isinstance(cfg.get("precision") or {}, Mapping) or not isinstance(hook, Mapping):
        return  # said where values are checked
    by_hook = "Fp16" in str(hook.get("type", "")) or hook.get("custom_fp16")
    key = "optimizer_config" if by_hook else "fp16" if cfg.get("fp16") is not None else "precision"
    with refused(findings, key):
        make_scaler(read_precision(cfg), torch.device("cpu"))


def check_optimizer(model: nn.Module, cfg: Config, findings: Findings) -> None:
    """Freeze, group and schedule the parameters of a model as a training would.

    Args:
        model: Loses the gradients of what the config freezes.
        cfg: A training config.
        findings: Take what cannot be done, and keys of `custom_keys` that change nothing.
    """
    optimizer = cfg.get("optimizer")
    if not isinstance(optimizer, Mapping):
        return  # said where keys are checked
    with refused(findings, "freeze"):
        Frozen(model, cfg)
    with refused(findings, "optimizer"):
        built = make_optimizer(model, optimizer)
        _check_schedule(built, cfg, findings)
    if _epochs(cfg):
        with refused(findings, "model"):
            set_epoch(model, 0.0, budget_epochs(cfg))
    for key, text in idle_entries(model, optimizer):
        findings.warn(f"{ENTRIES}.{key}", text)


def _check_schedule(optimizer: torch.optim.Optimizer, cfg: Config, findings: Findings) -> None:
    """Rehearse the policies over the training, and read the schedules of groups."""
    if findings.errors:  # the length or a policy, say, without which there is nothing to rehearse
        return
    # A policy by iteration may be made for a number of steps, which nobody knows yet. The training
    # rehearses its own before the first step.
    told = Findings()
    for steps in (_MANY_STEPS, _FEW_STEPS):
        told = Findings()
        with refused(told, "lr_config"):
            plan = _plan(cfg, steps)
            schedule = Schedule.of_config(optimizer, cfg, plan)
            with refused(told, ENTRIES):
                Rates(optimizer, cfg.optimizer, schedule, total_epochs=plan.total_epochs)
        if not told.errors:
            return
    findings.errors += told.errors


def check_object_sampling(cfg: Config, findings: Findings) -> None:
    """Check the epoch after which no objects are pasted."""
    if isinstance((cfg.get("data") or {}).get("train"), Mapping | list | tuple):
        with refused(findings, "object_sampling_until_epoch"):
            sampling_epochs(cfg)


def check_start(
    cfg: Config, findings: Findings, *, files: bool = True, in_sweep: bool = False
) -> None:
    """Check that the training state to go on from is there; a sweep's trials go on from none."""
    file = cfg.get("resume_from")
    if in_sweep:
        with refused(findings, "resume_from"):
            require_no_resume(cfg)
        return
    if files and isinstance(file, str) and file and not Path(file).is_file():
        findings.refuse(
            "resume_from",
            f"must name a training state (latest.pth), but {file!r} is not there ({Path.cwd()}). To"
            " start from the weights of another training, name its file in `load_from` and set"
            " `resume_from = None`.",
        )


def check_hooks(cfg: Config, findings: Findings) -> None:
    """Check the hook that averages weights, and name hooks that do not run."""
    value = cfg.get("custom_hooks")
    if text := idle_hooks(value):
        findings.warn("custom_hooks", text)
    if isinstance(value, Sequence) and not isinstance(value, str):
        with refused(findings, "custom_hooks"):
            averaging_hook(cfg)


def check_weights(
    model: nn.Module,
    file: Path,
    wanted: Wanted,
    key: str,
    findings: Findings,
    *,
    files: bool = True,
) -> None:
    """Check that a checkpoint is there and fits the model.

    Args:
        model: The detector.
        file: The checkpoint.
        wanted: Of the checkpoint.
        key: What names it.
        findings: Take what is wrong with it.
        files: It must be there.
    """
    if not file.is_file():
        if files:
            found = "is a folder" if file.is_dir() else f"is not there ({Path.cwd()})"
            text = f"must name a checkpoint file, but {str(file)!r} {found}."
            findings.refuse(key, text)
        return
    with heard(findings, key):
        try:
            examine(model, file, wanted)
        except CheckpointError as error:
            findings.refuse(key, str(error))


def idle_entries(model: nn.Module, optimizer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Entries of `custom_keys` that change nothing, with what decides in their place.

    Args:
        model: With what the config freezes frozen.
        optimizer: `optimizer` of the config.
    """
    entries = (optimizer.get("paramwise_cfg") or {}).get("custom_keys")
    if not isinstance(entries, Mapping):
        return
    parameters = dict(model.named_parameters())
    decides = {name: matching_key(name, entries) for name in parameters}
    for key, settings in entries.items():
        text = _idle(key, settings, parameters, decides, model)
        if text is not None:
            yield str(key), text


def _idle(
    key: str,
    settings: Any,
    parameters: Mapping[str, nn.Parameter],
    decides: Mapping[str, str | None],
    model: nn.Module,
) -> str | None:
    named = [name for name in parameters if key in name]
    if not named:
        return _nobody(key, parameters, model)
    own = [name for name in named if decides[name] == key]
    if not own:
        others = sorted({str(decides[name]) for name in named})
        return (
            f"changes nothing: for all {len(named)} parameters with `{key}` in their name, a longer"
            f" key decides, {', '.join(f'`{other}`' for other in others)}."
            f"{_longer(key, named[0], others)}"
        )
    still = isinstance(settings, Mapping) and settings.get("lr_mult") == 0
    if not still and not any(parameters[name].requires_grad for name in own):
        return (
            f"changes nothing: all {len(own)} parameters that it decides are frozen, by"
            " `frozen_stages`, `freeze` or the like."
        )
    return None


def _longer(key: str, name: str, others: Sequence[str]) -> str:
    """A key that would decide in place of longer ones, if there is one."""
    end = name.index(key) + len(key)
    starts = [0, *(i + 1 for i, letter in enumerate(name) if letter == "." and i < end)]
    longer = [name[start:end] for start in starts if end - start > max(map(len, others))]
    if not longer:
        return " Take one of them out."
    return f" Take it out, or write it as `{min(longer, key=len)}`."


def _nobody(key: str, parameters: Mapping[str, Any], model: nn.Module) -> str:
    if any(key in name for name, _ in model.named_modules()):
        return f"changes nothing: `{key}` is a part of the model without parameters. Take it out."
    parts = {part for name in parameters for part in name.split(".") if not part.isdigit()}
    near = difflib.get_close_matches(key, sorted(parts), n=1, cutoff=0.75)
    hint = f" The nearest name is `{near[0]}`." if near else ""
    return f"changes nothing: no parameter of the model has `{key}` in its name.{hint} Take it out."


@contextmanager
def refused(findings: Findings, key: str) -> Iterator[None]:
    """Take what is raised inside as an error of a key."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        findings.refuse(key, text)
