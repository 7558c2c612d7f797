"""Learning rate and momentum over a training, by mmcv's own hooks.

``lr_config`` and ``momentum_config`` name mmcv's policies, whose hooks compute them here on what
they read of a runner: so the users' configs mean here what they mean there.

A budget need not be whole epochs. As in mmcv, a policy that goes by epoch takes one step an epoch,
by the epochs that have ended; the length that it fits itself into is the budget, 1.5 epochs, say. A
policy that goes by iteration sees optimizer steps, and moves in any budget.
"""

import inspect
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from mmcv import Config
from mmcv.runner import HOOKS, Hook

from aqr_model.engine.config_keys import ConfigError
from aqr_model.engine.plan import Plan

_ENDINGS = {"lr_config": "LrUpdaterHook", "momentum_config": "MomentumUpdaterHook"}


class Schedule:
    """Sets the learning rate and momentum of every group, step by step.

    Args:
        optimizer: Its groups' own rates are what the policies start from; a resumed optimizer must
            be loaded before the first ``set``.
        lr_config: mmcv's; None keeps the rates.
        momentum_config: Likewise, of the momentum or Adam's first beta.
        total_steps: Optimizer steps of the training.
        total_epochs: Its epochs.
        steps_per_epoch: Optimizer steps of an epoch.

    Raises:
        ConfigError: If a policy or an argument is not known, or the policy does not reach the end.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        lr_config: Mapping[str, Any] | None,
        momentum_config: Mapping[str, Any] | None,
        total_steps: int,
        total_epochs: float,
        steps_per_epoch: int,
    ) -> None:
        # What the hooks read of mmcv's runner.
        runner = {
            "max_iters": total_steps,
            "max_epochs": total_epochs,
            "data_loader": range(steps_per_epoch),
        }
        self._runner = SimpleNamespace(optimizer=optimizer, **runner)
        self._hooks = make_hooks(lr_config, momentum_config)
        self._started = False
        # Rehearsed on a copy of the groups: some policies do not reach every end.
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        copy = SimpleNamespace(param_groups=groups, defaults=optimizer.defaults)
        _rehearse(make_hooks(lr_config, momentum_config), SimpleNamespace(optimizer=copy, **runner))

    @classmethod
    def of_config(cls, optimizer: torch.optim.Optimizer, cfg: Config, plan: Plan) -> "Schedule":
        """The schedule of a training.

        Args:
            optimizer: See the class.
            cfg: A training config.
            plan: Of the training.

        Raises:
            ConfigError: See the class.
        """
        return cls(
            optimizer,
            lr_config=cfg.get("lr_config"),
            momentum_config=cfg.get("momentum_config"),
            total_steps=plan.total_steps,
            total_epochs=plan.total_epochs,
            steps_per_epoch=plan.steps_per_epoch,
        )

    def set(self, step: int) -> None:
        """Set the rates of a step, from 0; they do not depend on the steps before it."""
        if not self._started:
            for hook in self._hooks:
                hook.before_run(self._runner)
            self._started = True
        _advance(self._hooks, self._runner, step)


def make_hooks(
    lr_config: Mapping[str, Any] | None, momentum_config: Mapping[str, Any] | None
) -> list[Hook]:
    """Build mmcv's hooks; without ``lr_config`` the rates are fixed.

    Raises:
        ConfigError: If a policy or an argument is not known, or an argument's value is refused.
    """
    hooks = [_hook("lr_config", {"policy": "fixed"} if lr_config is None else lr_config)]
    return hooks if momentum_config is None else [*hooks, _hook("momentum_config", momentum_config)]


def policies(name: str) -> dict[str, type[Hook]]:
    """The policies for ``lr_config`` or ``momentum_config``, by the names that mmcv knows."""
    ending, hooks = _ENDINGS[name], sorted(HOOKS.module_dict.items())
    return {key.removesuffix(ending): hook for key, hook in hooks if key.endswith(ending)}


def _hook(name: str, config: Mapping[str, Any]) -> Hook:
    arguments, known = dict(config), policies(name)
    policy = str(arguments.pop("policy", None))
    # mmcv capitalises a name without capitals: 'cyclic', but 'CosineAnnealing'.
    kind = known.get(policy.title() if policy.islower() else policy)
    if kind is None:
        raise ConfigError(f"`{name}.policy` must be one of {', '.join(known)}, but got {policy!r}.")
    if isinstance(arguments.get("target_ratio"), list):  # YAML and JSON have no tuples
        arguments["target_ratio"] = tuple(arguments["target_ratio"])
    try:
        return kind(**arguments)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"`{name}` must have arguments that fit policy {policy!r}, but"
            f" {str(error) or f'it does not take {arguments} together'}. The policy"
            f" takes {inspect.signature(kind)}, all take {inspect.signature(kind.__mro__[1])}."
        ) from error


def _rehearse(hooks: Sequence[Hook], runner: Any) -> None:
    last = runner.max_iters - 1
    try:
        for hook in hooks:
            hook.before_run(runner)
        for step in sorted({last * part // 100 for part in range(101)}):
            _advance(hooks, runner, step)
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(
            "`lr_config` and `momentum_config` must hold for the whole training of"
            f" {runner.max_iters} steps in {runner.max_epochs:g} epochs, but: {error}."
        ) from error


def _advance(hooks: Sequence[Hook], runner: Any, step: int) -> None:
    runner.iter, runner.epoch = step, step // len(runner.data_loader)
    for hook in hooks:
        hook.before_train_epoch(runner)
        hook.before_train_iter(runner)
