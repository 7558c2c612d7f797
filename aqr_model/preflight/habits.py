"""What mmcv and mmdet3d read in a config and a training here does not, and what to write instead.

An entry speaks only while nothing here reads its key: whoever adds a reader takes nothing out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aqr_model.engine.hooks import ACTING

Config = Mapping[str, Any]

QUIET = frozenset(
    {
        *("dist_params", "log_level", "plugin", "plugin_dir", "custom_imports", "gpu_ids", "gpus"),
        *("opencv_num_threads", "mp_start_method", "cudnn_benchmark", "device", "launcher"),
        *("dataset_type", "work_dir", "provenance"),
        *("data.test", "data.persistent_workers", "data.pin_memory", "evaluation.gpu_collect"),
        *(
            "evaluation.pipeline",
            "evaluation.tmpdir",
            "checkpoint_config.max_keep_ckpts",
            "checkpoint_config.out_dir",
        ),
    }
)
"""Keys that say where and how something runs, not what is trained."""


@dataclass(frozen=True, kw_only=True)
class Habit:
    """A setting that works elsewhere.

    Attributes:
        complaint: What to say of a value in a config; None where it asks for nothing.
        refuses: Whether a training without it would be another training than the config means.
    """

    complaint: Callable[[Any, Config], str | None]
    refuses: bool = False


def _if_set(text: str) -> Callable[[Any, Config], str | None]:
    return lambda value, config: text if value else None


def _workflow(value: Any, config: Config) -> str | None:
    others = [step for step in value or () if list(step)[:1] != ["train"]]
    if not others:
        return None
    return (
        f"{others} is not run: there is no loss of validation data. Scores come at"
        " `evaluation.rungs` or every `evaluation.interval` epochs."
    )


def idle_hooks(value: Any) -> str | None:
    """What to say of hooks that would have done something and do not run; None if all do."""
    hooks = [value] if isinstance(value, Mapping) else value or ()
    if not isinstance(hooks, Sequence) or isinstance(hooks, str):
        return f"must be a list of hooks, but got {value!r}; none is run."
    names = [str(hook.get("type")) if isinstance(hook, Mapping) else str(hook) for hook in hooks]
    idle = [name for name in names if name not in _HARMLESS_HOOKS and name not in ACTING]
    if not idle:
        return None
    unknown = [name for name in idle if name not in _registered()]
    told = f" ({', '.join(unknown)} is registered nowhere)" if unknown else ""
    return f"{', '.join(idle)} is not run{told}: take it out, or do not count on it."


def _registered() -> Mapping[str, Any]:
    from mmcv.runner import HOOKS

    return HOOKS.module_dict


# What they do happens here anyway, or concerns the machine alone.
_HARMLESS_HOOKS = frozenset(
    {
        *("TextLoggerHook", "NumClassCheckHook", "CheckInvalidLossHook", "IterTimerHook"),
        *("DistSamplerSeedHook", "EmptyCacheHook", "ProfilerHook", "MemoryProfilerHook"),
        *("SetEpochInfoHook", "SyncBuffersHook"),
    }
)


def _runner(value: Any, config: Config) -> str | None:
    if value in (None, "EpochBasedRunner"):
        return None
    return (
        f"{value} is not run: a training is as long as `total_epochs` says. Write it in epochs."
        " `evaluation.interval` and `checkpoint_config.interval` count steps, as with that runner."
    )


def _max_iters(value: Any, config: Config) -> str | None:
    # Without epochs the budget is missing, which is said where the budget is read.
    if value is None or not (config.get("total_epochs") or _epochs_of_runner(config)):
        return None
    return f"nothing reads it (here {value}): `total_epochs` decides."


def _epochs_of_runner(config: Config) -> Any:
    return (config.get("runner") or {}).get("max_epochs")


def _metric(value: Any, config: Config) -> str | None:
    asked = [value] if isinstance(value, str) else list(value or ())
    if set(asked) <= {"bbox", "NDS", "mAP"}:
        return None
    return (
        f"nothing reads it (here {value!r}): scores are always those of nuScenes' detection task."
    )


def _scaled(value: Any, config: Config) -> str | None:
    if not (isinstance(value, Mapping) and value.get("enable")):
        return None
    return "the learning rate is not scaled by the batch size: write the rate in `optimizer.lr`."


_LOADER = (
    "a loader takes its batch from `data.{batch}` and its processes from `data.workers_per_gpu`."
)
_ORDER = "samples are drawn anew for every epoch, by the seed and the step: no sampler is built."

HABITS: Mapping[str, Habit] = {
    "workflow": Habit(complaint=_workflow),
    "log_config.hooks": Habit(complaint=lambda value, config: idle_hooks(value)),
    "runner.type": Habit(complaint=_runner),
    "runner.max_iters": Habit(complaint=_max_iters),
    "evaluation.metric": Habit(complaint=_metric),
    "evaluation.save_best": Habit(
        complaint=_if_set("no best checkpoint is kept: `final.pth` is that of the last step.")
    ),
    "auto_scale_lr": Habit(complaint=_scaled),
    "data.train_dataloader": Habit(
        complaint=_if_set("nothing reads it: " + _LOADER.format(batch="samples_per_gpu"))
    ),
    "data.val_dataloader": Habit(
        complaint=_if_set("nothing reads it: " + _LOADER.format(batch="val_samples_per_gpu"))
    ),
    "data.test_dataloader": Habit(
        complaint=_if_set("nothing reads it: " + _LOADER.format(batch="val_samples_per_gpu"))
    ),
    "data.shuffler_sampler": Habit(complaint=_if_set(_ORDER)),
    "data.nonshuffler_sampler": Habit(complaint=_if_set(_ORDER)),
    "data.sampler": Habit(complaint=_if_set(_ORDER)),
    "data.shuffle": Habit(
        complaint=lambda value, config: None if value in (None, True) else _ORDER
    ),
}
