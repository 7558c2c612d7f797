"""AQR's statistics and pictures during a training: collected on an interval, nothing between."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from mmcv import Config
from torch import nn

from aqr_model.aqr import gradient_norms
from aqr_model.aqr.observed import Observed, join, observe, to_host
from aqr_model.aqr.statistics import describe, histograms_of
from aqr_model.engine import config_keys
from aqr_model.engine.distributed import Workers

READS: config_keys.Reads = {
    "picture_interval": config_keys.WHOLE_FROM_0.or_none(),
    "picture_sample": config_keys.ANY,
}
HISTOGRAMS_NAME = "aqr_histograms.jsonl"
# A file that grows is handed over anew whenever it has grown by this share.
_GROWTH = 1.25


class Log(Protocol):
    """The part of a report that takes values and files."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Hand over values of a step."""
        ...

    def artifact(self, path: Path) -> None:
        """Hand over a file."""
        ...


class AqrMonitor:
    """Report the distributions of weights, maps and modulation on an interval.

    ``model.pts_bbox_head.visualization_interval`` is the interval of the statistics, in steps, 0
    for never. ``picture_interval``, at the top of a config, is that of pictures of one validation
    sample, number ``picture_sample`` (0 by default).

    Several processes: each builds a monitor and calls it. The statistics are those of the whole
    step, its accumulated batches and processes together, as one process with one large batch would
    see them; rank 0 computes and reports them.

    Args:
        model: The detector; without AQR nothing is reported.
        cfg: Its config.
        report: Takes the values; None in all processes but that of rank 0.
        workers: The processes of the training.
        workdir: Folder for histograms and pictures; without it there are none.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: Config,
        report: Log | None,
        *,
        workers: Workers | None = None,
        workdir: Path | None = None,
    ) -> None:
        head: Any = model.pts_bbox_head
        self.model, self.head = model, head
        self.report, self.workers, self.workdir = report, workers or Workers(), workdir
        settings = cfg.model.pts_bbox_head
        routed = bool(settings.get("enable_aqr"))
        self.interval = settings.get("visualization_interval", 0) if routed else 0
        self.picture_interval = cfg.get("picture_interval", 0) if routed and workdir else 0
        self._pictures = None
        if self.picture_interval and report is not None:
            from aqr_model.report.viewer import Viewer

            self._pictures = Viewer(cfg)
            self._sample = self._pictures.index(str(cfg.get("picture_sample", 0)))
        self._parts: list[Observed] = []
        self._norms: dict[str, float] | None = None
        self._handed_bytes = 0

    def before_step(self, step: int) -> None:
        """Ask the head for its AQR tensors where this step is to be reported."""
        if self.interval:
            self.head.collect_aqr = self._is_due(step, self.interval)

    def after_part(self, step: int) -> None:
        """Keep what one of the batches of a step has shown, to be called after its backward."""
        if self._is_due(step, self.interval):
            self._parts.append(self._observe())
            self.head.last_aqr = None  # the tensors can go

    def measure_gradients(self, step: int) -> None:
        """Note the gradient norms as they are now, to be called before they are clipped.

        Without this call `after_backward` notes them as it finds them.
        """
        if self._is_due(step, self.interval) and self.report is not None:
            self._norms = gradient_norms(self.head.named_parameters())

    def after_backward(self, step: int) -> None:
        """Report the step's statistics, histograms and gradient norms, and draw a due picture."""
        if self._is_due(step, self.interval):
            by_rank = self.workers.to_main(self._parts)
            if self.report is not None:
                self._report([part for parts in by_rank for part in parts], step)
            self.head.collect_aqr, self._parts = False, []
        if self._pictures is not None and self._is_due(step, self.picture_interval):
            self._draw(step)

    def is_due(self, step: int) -> bool:
        """Whether a step's statistics or picture are reported."""
        return self._is_due(step, self.interval) or self._is_due(step, self.picture_interval)

    def _observe(self) -> Observed:
        found = {k: v for k, v in self.head.last_aqr.items() if k not in ("renderer", "modulator")}
        observed = observe(**found)
        return observed if self.workers.size == 1 else to_host(observed)

    def _report(self, parts: list[Observed], step: int) -> None:
        assert self.report is not None
        renderer, modulator = self.head.weight_renderer, self.head.feature_modulator
        observed = join(parts)
        values = describe(observed, renderer=renderer, modulator=modulator)
        norms = self._norms
        if norms is None:
            norms = gradient_norms(self.head.named_parameters())
        self._norms = None
        # A loss scale that was too high made the others; the trainer counts such steps.
        values |= {name: norm for name, norm in norms.items() if math.isfinite(norm)}
        self.report.log(values, step=step + 1)
        if self.workdir is not None:
            shares = histograms_of(observed, max_weight_clamp=renderer.max_weight_clamp)
            self._keep({"step": step + 1, "max_weight_clamp": renderer.max_weight_clamp, **shares})

    def _keep(self, record: Mapping[str, Any]) -> None:
        """Append the histograms of a step to their file, one JSON object a line."""
        assert self.workdir is not None
        assert self.report is not None
        path = self.workdir / HISTOGRAMS_NAME
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if path.stat().st_size >= _GROWTH * self._handed_bytes:
            self._handed_bytes = path.stat().st_size
            self.report.artifact(path)

    @torch.no_grad()
    def _draw(self, step: int) -> None:
        assert self._pictures is not None
        assert self.report is not None
        assert self.workdir is not None
        from aqr_model.report.pictures import draw, save

        scene, _ = self._pictures.look(self.model, self._sample)
        path = self.workdir / "pictures" / f"aqr_{step + 1:07d}.png"
        self.report.artifact(save(draw(scene), path))

    def _is_due(self, step: int, interval: int) -> bool:
        return bool(interval) and (step + 1) % interval == 0
