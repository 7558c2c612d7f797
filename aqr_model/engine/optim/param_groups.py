"""Parameter groups: which rate each parameter learns with, by name, today."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmcv.runner import build_optimizer
from torch import nn

from aqr_model.aqr.schedules import make_schedule
from aqr_model.engine import config_keys
from aqr_model.engine.optim.lr_schedule import Schedule

_GROUPS = "optimizer.paramwise_cfg"
# What mmcv's DefaultOptimizerConstructor reads, and the schedule of a key.
READS: config_keys.Reads = {
    "optimizer.type": config_keys.TEXT.given(),
    "optimizer.lr": config_keys.NUMBER_ABOVE_0.given(),
    "optimizer.*": config_keys.ANY,
    f"{_GROUPS}.custom_keys.*.lr_mult": config_keys.NUMBER_FROM_0,
    f"{_GROUPS}.custom_keys.*.decay_mult": config_keys.NUMBER_FROM_0,
    f"{_GROUPS}.custom_keys.*.lr_mult_schedule.**": config_keys.ANY,
    f"{_GROUPS}.bias_lr_mult": config_keys.NUMBER_FROM_0,
    f"{_GROUPS}.bias_decay_mult": config_keys.NUMBER_FROM_0,
    f"{_GROUPS}.norm_decay_mult": config_keys.NUMBER_FROM_0,
    f"{_GROUPS}.dwconv_decay_mult": config_keys.NUMBER_FROM_0,
    f"{_GROUPS}.dcn_offset_lr_mult": config_keys.NUMBER_FROM_0,
    f"{_GROUPS}.bypass_duplicate": config_keys.FLAG,
}

_CAN_FUSE = ("Adam", "AdamW", "SGD")
# AQR's learned numbers, whose neutral values are 1 and 0: decay would switch the modulation off.
_NEVER_DECAYED = ("modulation_scale", "modulation_bias")


def matching_key(name: str, keys: Iterable[str]) -> str | None:
    """The key of ``custom_keys`` that decides for a parameter, as mmcv chooses it.

    Args:
        name: The parameter's name in the detector.
        keys: Parts of names; the longest that the name contains wins, then the alphabet.
    """
    ordered = sorted(sorted(keys), key=len, reverse=True)
    return next((key for key in ordered if key in name), None)


def make_optimizer(model: nn.Module, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Build the optimizer of the parameters that train, in groups with names.

    mmcv makes one group of each parameter; here those with the same name and settings share one,
    which lets torch update them together. A group is named by its key in ``custom_keys``, else by
    the part of the detector. AQR's learned scale and bias of the modulation never decay.

    Args:
        model: The detector, frozen where it shall be.
        config: ``optimizer`` of a config, with mmcv's ``paramwise_cfg``.

    Raises:
        ValueError: If nothing trains.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    keys = (config.get("paramwise_cfg") or {}).get("custom_keys") or {}
    optimizer = build_optimizer(model, _without_schedules(_fused(config, model)))
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not parameter.requires_grad:
                continue
            own = names[id(parameter)]
            settings = {key: value for key, value in group.items() if key != "params"}
            settings["name"] = matching_key(own, keys) or own.split(".")[0]
            if own.endswith(_NEVER_DECAYED):
                settings["weight_decay"] = 0.0
            place = tuple(sorted((key, repr(value)) for key, value in settings.items()))
            merged.setdefault(place, {**settings, "params": []})["params"].append(parameter)
    if not merged:
        raise ValueError("a model must have parameters that train, but all of this one are frozen")
    optimizer.param_groups = list(merged.values())
    return optimizer


def _fused(config: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """On a GPU let torch update all parameters of a group by one kernel, unless the config says."""
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    return {"fused": True, **config} if on_gpu and config.get("type") in _CAN_FUSE else config


class Rates:
    """Learning rate and momentum of every group over the training.

    A group's rate is what the schedule makes of its own, times its multiplier of the epoch if its
    key has an ``lr_mult_schedule``, which stands in place of ``lr_mult``.

    Args:
        optimizer: From :func:`make_optimizer`.
        config: ``optimizer`` of the same config.
        schedule: Of the same optimizer.
        total_epochs: Epochs of the whole training.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        config: Mapping[str, Any],
        schedule: Schedule,
        *,
        total_epochs: float,
    ) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        keys = (config.get("paramwise_cfg") or {}).get("custom_keys") or {}
        self.multipliers = {
            key: make_schedule(settings["lr_mult_schedule"], total_epochs)
            for key, settings in keys.items()
            if settings.get("lr_mult_schedule") is not None
        }

    def set(self, step: int, epoch: float) -> None:
        """Set the rates of a step."""
        self.schedule.set(step)
        for group in self.optimizer.param_groups:
            if (multiplier := self.multipliers.get(group["name"])) is not None:
                group["lr"] *= multiplier(epoch)

    def by_name(self) -> dict[str, float]:
        """Today's rate of each named group, the largest where a name has several."""
        rates: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            rates[group["name"]] = max(rates.get(group["name"], 0.0), group["lr"])
        return rates


def _without_schedules(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as mmcv reads it; a scheduled key starts from the base rate."""
    plain = dict(config)
    paramwise = dict(plain.get("paramwise_cfg") or {})
    if "custom_keys" in paramwise:
        paramwise["custom_keys"] = {
            key: {
                name: value
                for name, value in settings.items()
                if name != "lr_mult_schedule"
                and not (name == "lr_mult" and settings.get("lr_mult_schedule") is not None)
            }
            for key, settings in paramwise["custom_keys"].items()
        }
    if paramwise:
        plain["paramwise_cfg"] = paramwise
    return plain
