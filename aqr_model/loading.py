"""Batches in an order, and with augmentations, that depend on the seed and the step alone.

A training that resumes at step k sees exactly what it would have seen: there are no random states
to save.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmcv.parallel import collate, scatter
from torch.utils.data import DataLoader, Dataset, Sampler

_MASK = 2**64 - 1


def mix(*numbers: int) -> int:
    """One well-spread 32-bit seed from several numbers, by splitmix64's finaliser."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state & 0xFFFFFFFF


def seed_everything(*numbers: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, which legacy pipelines draw from."""
    seed = mix(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def batch_indices(num_samples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Samples of an optimizer step.

    Epochs are fresh permutations; an incomplete last batch is left out.

    Args:
        num_samples: Samples of the dataset.
        batch_size: Samples of a step.
        seed: Seed of the run.
        step: Optimizer step, from 0 over all epochs.

    Raises:
        ValueError: If there is no full batch.
    """
    per_epoch = num_samples // batch_size
    if per_epoch == 0:
        raise ValueError(
            f"the dataset must hold at least one batch, but got (samples={num_samples}, "
            f"batch={batch_size}); use more data or a smaller data.samples_per_gpu"
        )
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(num_samples)
    return order[place * batch_size : (place + 1) * batch_size].tolist()


class _SeededSamples(Dataset):
    """A dataset whose draws are addressed by (step, place, index) and seeded by them."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, address: tuple[int, int, int]) -> Any:
        step, place, index = address
        seed_everything(self.seed, 1, step, place)
        return self.dataset[index]


class _StepSampler(Sampler):
    """Addresses of the batches from one step to another."""

    def __init__(self, num_samples: int, batch_size: int, seed: int, start: int, stop: int) -> None:
        self.arguments = (num_samples, batch_size, seed)
        self.steps = range(start, stop)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step in self.steps:
            chosen = batch_indices(*self.arguments, step)
            yield [(step, place, index) for place, index in enumerate(chosen)]

    def __len__(self) -> int:
        return len(self.steps)


def training_batches(
    dataset: Any, *, batch_size: int, num_workers: int, seed: int, start: int, stop: int
) -> DataLoader:
    """Collated batches of the steps ``start`` to ``stop - 1``.

    Args:
        dataset: An mmdet3d dataset in training mode.
        batch_size: Samples of a step.
        num_workers: Loading processes; 0 loads in this one.
        seed: Seed of the run.
        start: First step.
        stop: One past the last step.
    """
    return DataLoader(
        _SeededSamples(dataset, seed),
        batch_sampler=_StepSampler(len(dataset), batch_size, seed, start, stop),
        num_workers=num_workers,
        collate_fn=lambda samples: collate(samples, samples_per_gpu=batch_size),
    )


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Unwrap mmcv's containers onto a device; ready as the detector's keyword arguments."""
    index = -1 if device.type == "cpu" else (device.index or 0)
    return scatter(batch, [index])[0]
