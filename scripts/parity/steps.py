"""A short training on both sides: our loop, and the public detector under mmcv's own runner.

Ours is `aqr_model.engine.loop.train` on a small dataset; it writes down the samples and the noise
of every step. The public detector then takes the same, with mmcv's `EpochBasedRunner`,
`OptimizerHook`, learning-rate and momentum hooks, and its optimizer from mmcv's `build_optimizer`.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import parity_cases
import torch
from torch import nn

STEPS = 12
SAMPLES = 24
BATCH = 2
# The loss is not scaled, and torch's scaler takes no float64.
_NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def sample(size: str, index: int) -> parity_cases.Batch:
    """One sample; its number of boxes differs from the next one's, and the third has none."""
    counts = (5, 1, 9, 3, 7, 2, 4, 8)
    count = 0 if index == 2 else counts[index % len(counts)]
    return parity_cases.batch(size, (count,), seed=100 + index)


def _found(losses: list, norms: list, rates: list, model: nn.Module) -> dict[str, np.ndarray]:
    found = {
        "step.loss": np.array(losses),
        "step.grad_norm": np.array(norms),
        "step.lr": np.array([[lr for lr, _ in row] for row in rates]),
        "step.momentum": np.array([[beta for _, beta in row] for row in rates]),
    }
    state = model.state_dict()
    return found | {f"weight.{n}": v.numpy() for n, v in state.items() if v.is_floating_point()}


def _rates(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[float, float]]:
    """(learning rate, first beta) of every parameter, in the order of their names."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return [
        (groups[id(p)]["lr"], groups[id(p)]["betas"][0])
        for _, p in sorted(model.named_parameters())
    ]


def ours(case: str, cfg: Any, folder: Path) -> dict[str, np.ndarray]:
    """Train by our loop; write what the other side needs."""
    size = case.split(".")[0]
    from unittest import mock

    from mmcv.parallel import DataContainer
    from mmdet.datasets import DATASETS

    from aqr_model.cmt import denoising
    from aqr_model.engine import loop, setup
    from aqr_model.engine.optim.param_groups import Rates

    @DATASETS.register_module(force=True)
    class ParitySamples(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, index: int) -> dict[str, Any]:
            data = sample(size, index)
            given = parity_cases.arguments(data)
            meta = {**given["img_metas"][0], "index": index}
            return {
                "img_metas": DataContainer(meta, cpu_only=True),
                "points": DataContainer(given["points"][0]),
                "img": DataContainer(given["img"][0], stack=True),
                "gt_bboxes_3d": meta["gt_bboxes_3d"],
                "gt_labels_3d": meta["gt_labels_3d"],
            }

    class Unscored:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def score(self, *_: Any, **__: Any) -> dict[str, float]:
            return {}

    class Report:
        losses: ClassVar[list[float]] = []
        norms: ClassVar[list[float]] = []

        def rung(self, *_: Any, **__: Any) -> None:
            pass

        def log(self, values: dict[str, float], *, step: int) -> None:
            if "train/loss" in values:
                self.losses.append(values["train/loss"])
                self.norms.append(values["train/grad_norm"])

    order: list[list[int]] = []
    noise: list[np.ndarray] = []
    rates: list[Any] = []
    models: list[nn.Module] = []
    drawn, set_rates = denoising.draw_seeded_noise, Rates.set

    def draw(*given: Any) -> torch.Tensor:
        noise.append((value := drawn(*given)).numpy())
        return value

    def set_and_keep(self: Rates, *given: Any) -> None:
        set_rates(self, *given)
        rates.append(_rates(models[0], self.optimizer))

    def build(cfg: Any) -> nn.Module:
        from mmdet3d.models import build_model

        model = parity_cases.detector(build_model, cfg)
        model.register_forward_pre_hook(
            lambda module, given, named: order.append([m["index"] for m in named["img_metas"]]),
            with_kwargs=True,
        )
        models.append(model)
        return model

    parity_cases.settings(cfg, case).merge_from_dict(
        {
            "data": {
                "_delete_": True,
                "samples_per_gpu": BATCH,
                "workers_per_gpu": 0,
                "train": {"type": "ParitySamples"},
            },
            "total_epochs": STEPS * BATCH / SAMPLES,
            "evaluation": {"_delete_": True, "rungs": [1.0]},
            "log_config": {"_delete_": True, "interval": 1},
            "num_threads": 1,
        }
    )
    cfg.optimizer_config = {"grad_clip": cfg.optimizer_config.grad_clip}  # float32 on both sides
    report: Any = Report()
    with (
        mock.patch.object(setup, "Evaluator", Unscored),
        mock.patch.object(setup, "build_detector", build),
        mock.patch.object(setup, "make_scaler", return_value=_NO_SCALER),
        mock.patch.object(denoising, "draw_seeded_noise", draw),
        mock.patch.object(Rates, "set", set_and_keep),
    ):
        loop.train(cfg, workdir=folder / f"{size}.work", report=report)
    tape = {f"noise_{i}": value for i, value in enumerate(noise)}
    np.savez(folder / f"{size}.tape.npz", order=np.array(order), **tape)
    return _found(report.losses, report.norms, rates, models[0])


def public(case: str, cfg: Any, folder: Path) -> dict[str, np.ndarray]:
    """Train by mmcv's runner on what our side wrote down."""
    size = case.split(".")[0]
    parity_cases.settings(cfg, case)
    from mmcv.runner import EpochBasedRunner, Hook, build_optimizer
    from mmdet3d.models import build_model

    model = parity_cases.detector(build_model, cfg)
    model.train()
    optimizer = build_optimizer(model, cfg.optimizer)
    with np.load(folder / f"{size}.tape.npz") as file:
        tape = dict(file)
    draws = iter(tape[f"noise_{i}"] for i in range(len(tape) - 1))
    torch.rand_like = lambda like, **_: (torch.from_numpy(next(draws)) + 1) / 2

    class Batches:
        def __len__(self) -> int:
            return len(tape["order"])

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for indices in tape["order"]:
                data = parity_cases.Batch.join([sample(size, i) for i in indices])
                yield parity_cases.training_arguments(data)

    losses: list[float] = []
    norms: list[float] = []
    rates: list[Any] = []

    class Keep(Hook):
        def after_train_iter(self, runner: Any) -> None:
            losses.append(runner.outputs["log_vars"]["loss"])
            norms.append(runner.log_buffer.val_history["grad_norm"][-1])
            rates.append(_rates(model, runner.optimizer))

    logger = logging.getLogger("parity")
    runner = EpochBasedRunner(
        model, optimizer=optimizer, work_dir=str(folder), logger=logger, max_epochs=1
    )
    clip = {"grad_clip": dict(cfg.optimizer_config.grad_clip)}
    runner.register_training_hooks(cfg.lr_config, clip, momentum_config=cfg.get("momentum_config"))
    runner.register_hook(Keep(), priority="LOW")
    runner.run([Batches()], [("train", 1)])
    return _found(losses, norms, rates, model)


RATE_STEPS, RATE_EPOCHS, EVERY = 10_000, 20, 100


def ours_rates(cfg: Any) -> dict[str, np.ndarray]:
    """Weight decay of every parameter; its rate and first beta at every hundredth of a training."""
    from mmdet3d.models import build_model

    from aqr_model.engine.optim.lr_schedule import Schedule
    from aqr_model.engine.optim.param_groups import Rates as Groups
    from aqr_model.engine.optim.param_groups import make_optimizer

    model = build_model(cfg.model)
    optimizer = make_optimizer(model, cfg.optimizer)
    schedule = Schedule(
        optimizer,
        lr_config=cfg.lr_config,
        momentum_config=cfg.get("momentum_config"),
        total_steps=RATE_STEPS,
        total_epochs=RATE_EPOCHS,
        steps_per_epoch=RATE_STEPS // RATE_EPOCHS,
    )
    groups, rates = Groups(optimizer, cfg.optimizer, schedule, total_epochs=RATE_EPOCHS), []
    for step in range(0, RATE_STEPS, EVERY):
        groups.set(step, step * RATE_EPOCHS / RATE_STEPS)
        rates.append(_rates(model, optimizer))
    return _scheduled(model, optimizer, rates)


def public_rates(cfg: Any, folder: Path) -> dict[str, np.ndarray]:
    """The same under mmcv's runner, whose steps do nothing."""
    from mmcv.runner import EpochBasedRunner, Hook, build_optimizer
    from mmdet3d.models import build_model

    model = build_model(cfg.model)
    rates: list[Any] = []

    class Still(nn.Module):
        def train_step(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {"loss": 0.0, "log_vars": {}, "num_samples": 1}

    class Keep(Hook):
        def before_train_iter(self, runner: Any) -> None:
            if runner.iter % EVERY == 0:
                rates.append(_rates(model, runner.optimizer))

    optimizer = build_optimizer(model, cfg.optimizer)
    runner = EpochBasedRunner(
        Still(),
        optimizer=optimizer,
        work_dir=str(folder),
        logger=logging.getLogger("parity"),
        max_epochs=RATE_EPOCHS,
    )
    runner.register_lr_hook(cfg.lr_config)
    runner.register_momentum_hook(cfg.get("momentum_config"))
    runner.register_hook(Keep(), priority="VERY_LOW")
    runner.run([range(RATE_STEPS // RATE_EPOCHS)], [("train", 1)])
    return _scheduled(model, optimizer, rates)


def _scheduled(
    model: nn.Module, optimizer: torch.optim.Optimizer, rates: list
) -> dict[str, np.ndarray]:
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    return {
        "rate.lr": np.array([[lr for lr, _ in row] for row in rates]),
        "rate.momentum": np.array([[beta for _, beta in row] for row in rates]),
        "rate.decay": np.array([decays[id(p)] for _, p in sorted(model.named_parameters())]),
    }
