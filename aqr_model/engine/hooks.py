"""mmcv's hooks of a config: those that average weights run."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from mmcv import Config
from mmcv.runner import HOOKS, EMAHook, get_priority
from mmcv.utils import build_from_cfg
from mmdet.core.hook import ExpMomentumEMAHook, LinearMomentumEMAHook
from torch import nn

from aqr_model.engine import config_keys
from aqr_model.engine.plan import PlanError

READS: config_keys.Reads = {"custom_hooks": config_keys.HOOKS.or_none()}
AVERAGED_KEY = "val/averaged_weights"
"""Stands, as 1, beside scores of the averages that an EMA hook keeps."""

_AVERAGING = (EMAHook, ExpMomentumEMAHook, LinearMomentumEMAHook)
ACTING = tuple(hook.__name__ for hook in _AVERAGING)
"""Hooks of ``custom_hooks`` that run here."""


def averaging_hook(cfg: Config) -> Any | None:
    """Build the hook of ``custom_hooks`` that averages weights; None without one.

    Raises:
        PlanError: If there are several, or its settings cannot be followed.
    """
    found = [hook for hook in cfg.get("custom_hooks") or () if hook.get("type") in ACTING]
    if not found:
        return None
    if len(found) > 1:
        raise PlanError(f"custom_hooks must hold one EMA hook at most, but holds {len(found)}")
    settings = dict(found[0])
    priority = settings.pop("priority", "NORMAL")
    if settings.get("resume_from"):
        raise PlanError(
            f"`resume_from` of {settings['type']} must be None: --resume of the training command "
            "brings the averaged weights back, too"
        )
    try:
        after_scores = get_priority(priority) >= get_priority("LOW")
        hook = build_from_cfg(settings, HOOKS)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise PlanError(f"{settings['type']} of custom_hooks: {error!r}") from error
    if after_scores:
        raise PlanError(
            f"the priority of {settings['type']} must be above LOW, so that the averaged weights "
            f"are there when they are scored, but is {priority!r}"
        )
    return hook


class Averaged:
    """Averages of a model's weights, by mmcv's own hook; nothing at all without one.

    The hook keeps them as buffers of the model, named ``ema_...``: so they are in its state dict,
    and come back with it.

    Args:
        model: On its device and with its first weights.
        hook: From :func:`averaging_hook`.
    """

    def __init__(self, model: nn.Module, hook: Any | None) -> None:
        self.hook = hook
        # All that these hooks know of a runner.
        self._runner = SimpleNamespace(model=model, iter=0)
        if hook is not None:
            hook.before_run(self._runner)

    def update(self, step: int) -> None:
        """Take the weights of a step into the averages.

        Args:
            step: Optimizer steps before it, from 0.
        """
        if self.hook is not None:
            self._runner.iter = step
            self.hook.after_train_iter(self._runner)

    @property
    def acts(self) -> bool:
        """Whether there are averages."""
        return self.hook is not None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the averages stand in the model, and the weights that train in the buffers."""
        if self.hook is None:
            yield
            return
        self.hook.after_train_epoch(self._runner)
        try:
            yield
        finally:
            self.hook.before_train_epoch(self._runner)
