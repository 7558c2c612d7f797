"""AQR's statistics during a training: collected on an interval, nothing between."""

from collections.abc import Mapping
from typing import Any, Protocol

from mmcv import Config
from torch import nn

from aqr_model.aqr import aqr_statistics, gradient_norms


class Log(Protocol):
    """The part of a report that takes values."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Hand over values of a step."""
        ...


class AqrMonitor:
    """Report the distributions of weights, maps and modulation on an interval.

    Args:
        model: The detector; without AQR nothing is reported.
        cfg: Its config; ``model.pts_bbox_head.visualization_interval`` gives the interval, 0 for
            never.
        report: Takes the values.
    """

    def __init__(self, model: nn.Module, cfg: Config, report: Log) -> None:
        self.head: Any = model.pts_bbox_head
        settings = cfg.model.pts_bbox_head
        interval = settings.get("visualization_interval", 0)
        self.interval = interval if settings.get("enable_aqr") else 0
        self.report = report

    def before_step(self, step: int) -> None:
        """Ask the head for its AQR tensors where this step is to be reported."""
        if self.interval:
            self.head.collect_aqr = self._is_due(step)

    def after_backward(self, step: int) -> None:
        """Report the step's statistics and gradient norms."""
        if not self._is_due(step):
            return
        values = aqr_statistics(**self.head.last_aqr)
        self.report.log(values | gradient_norms(self.head.named_parameters()), step=step + 1)
        self.head.collect_aqr, self.head.last_aqr = False, None  # the tensors can go

    def _is_due(self, step: int) -> bool:
        return bool(self.interval) and (step + 1) % self.interval == 0
