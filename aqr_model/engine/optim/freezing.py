"""Frozen parts: weights that take no gradient and statistics that do not move, in the built model.

A config freezes in four ways, all of them resolved here or, for the first, by the backbone itself:

- ``frozen_stages`` and ``norm_eval`` of an image backbone;
- ``freeze = ["pts_backbone", "pts_neck"]``: whole modules by name, since SECOND and the necks have
  no such settings: no gradients, batch norms and dropout as in evaluation;
- ``norm_eval = ["pts_neck"]``: the batch norms below a module keep their statistics, all else
  trains;
- ``lr_mult=0`` in ``optimizer.paramwise_cfg.custom_keys``, without a schedule: the parameters that
  the key matches, and the statistics of batch norms that have no other parameters.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcv import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from aqr_model.engine import config_keys
from aqr_model.engine.optim.param_groups import matching_key

logger = logging.getLogger(__name__)

READS: config_keys.Reads = {
    "freeze": config_keys.NAMES.or_none(),
    "norm_eval": config_keys.NAMES.or_none(),
}


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """How much of a part trains.

    Attributes:
        trainable: Numbers that take gradients.
        frozen: Numbers that do not.
        norms: Batch norms.
        fixed_norms: Batch norms that keep their statistics.
    """

    trainable: int
    frozen: int
    norms: int
    fixed_norms: int


class Frozen:
    """The parts of a model that must not move.

    Args:
        model: The detector; its frozen parameters lose ``requires_grad`` here.
        cfg: Its training config.

    Raises:
        ValueError: If a name or a key fits nothing in the model.
    """

    def __init__(self, model: nn.Module, cfg: Config) -> None:
        self.model = model
        whole = [_module(model, name, "freeze") for name in cfg.get("freeze") or ()]
        for module in whole:
            module.requires_grad_(False)
        by_rate = _frozen_by_rate(model, cfg.get("optimizer") or {})
        for parameter in by_rate:
            parameter.requires_grad_(False)
        norms = [
            norm
            for name in cfg.get("norm_eval") or ()
            for norm in _norms(_module(model, name, "norm_eval"))
        ]
        norms += [
            norm
            for norm in _norms(model)
            if (own := list(norm.parameters(recurse=False)))
            and all(any(p is frozen for frozen in by_rate) for p in own)
        ]
        self._still: tuple[nn.Module, ...] = (*whole, *norms)

    def train_mode(self) -> None:
        """Put the model into training mode, its frozen parts into evaluation."""
        self.model.train()
        for module in self._still:
            module.eval()

    def report(self) -> dict[str, PartReport]:
        """See :func:`frozen_report`; the model must be in this object's training mode."""
        return frozen_report(self.model)

    def log(self) -> None:
        """Log the report, a line for each part that is not wholly trainable."""
        self.train_mode()
        for name, part in self.report().items():
            if part.frozen or part.fixed_norms:
                logger.info(
                    "%s: %d numbers train, %d are frozen; %d of %d batch norms are fixed",
                    name,
                    part.trainable,
                    part.frozen,
                    part.fixed_norms,
                    part.norms,
                )


def frozen_report(model: nn.Module) -> dict[str, PartReport]:
    """Count what trains in each top-level part, of the model as it stands.

    Args:
        model: In training mode, for else all batch norms are fixed.
    """
    return {name: _part_report(part) for name, part in model.named_children() if _counts(part)}


def _part_report(part: nn.Module) -> PartReport:
    sizes = [(p.numel(), p.requires_grad) for p in part.parameters()]
    norms = list(_norms(part))
    return PartReport(
        trainable=sum(size for size, trains in sizes if trains),
        frozen=sum(size for size, trains in sizes if not trains),
        norms=len(norms),
        fixed_norms=sum(not norm.training for norm in norms),
    )


def _counts(part: nn.Module) -> bool:
    return any(True for _ in part.parameters()) or bool(_norms(part))


def _norms(module: nn.Module) -> Sequence[nn.Module]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _module(model: nn.Module, name: str, key: str) -> nn.Module:
    modules = dict(model.named_modules())
    if not name or name not in modules:
        parts = ", ".join(part for part, _ in model.named_children())
        raise ValueError(
            f"`{key}` must name modules of the model, but got {name!r}; at the top are {parts}"
        )
    return modules[name]


def _frozen_by_rate(model: nn.Module, optimizer: Mapping[str, Any]) -> list[nn.Parameter]:
    """Parameters whose multiplier is 0 for good."""
    keys = (optimizer.get("paramwise_cfg") or {}).get("custom_keys") or {}
    zero = {
        key
        for key, settings in keys.items()
        if settings.get("lr_mult", 1.0) == 0 and settings.get("lr_mult_schedule") is None
    }
    return [p for name, p in model.named_parameters() if matching_key(name, keys) in zero]
