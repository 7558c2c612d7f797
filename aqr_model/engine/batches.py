"""Batches in an order, and with augmentations, that depend on the seed and the step alone.

A training that resumes at step k sees exactly what it would have seen: there are no random states
to save.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from aqr_model.engine.object_sampling import SamplingUntil
from aqr_model.engine.transfer import collate

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
    order = _order(num_samples, seed, epoch)
    return order[place * batch_size : (place + 1) * batch_size].tolist()


@lru_cache(maxsize=2)
def _order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the samples of an optimizer step fall to processes and to batches one after another.

    However a step is split, it holds the same samples in the same places, and what is drawn for a
    sample depends on its place.

    Attributes:
        batch_size: Samples of one batch.
        parts: Batches that a process accumulates.
        rank: This process.
        num_ranks: Processes.
    """

    batch_size: int
    parts: int = 1
    rank: int = 0
    num_ranks: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        counts = (self.batch_size, self.parts, self.num_ranks)
        if any(not isinstance(count, int) or count < 1 for count in counts):
            raise ValueError(
                "samples_per_gpu, cumulative_iters and the number of processes must be whole "
                f"numbers above 0, but got {counts}"
            )

    @property
    def samples_per_step(self) -> int:
        """Over all processes."""
        return self.batch_size * self.parts * self.num_ranks

    def first_place(self, part: int) -> int:
        """Place in the step of the first sample of this process's batch."""
        return (part * self.num_ranks + self.rank) * self.batch_size


class _SeededSamples(Dataset):
    """A dataset whose draws are addressed by (step, place, index) and seeded by them."""

    def __init__(self, dataset: Dataset, seed: int, sampling_stop: int | None) -> None:
        self.dataset = dataset
        self.seed = seed
        self.sampling = SamplingUntil(dataset, sampling_stop)

    def __getitem__(self, address: tuple[int, int, int]) -> Any:
        step, place, index = address
        self.sampling.set(step)
        seed_everything(self.seed, 1, step, place)
        sample = self.dataset[index]
        if isinstance(sample, dict) and "img_metas" in sample:
            # Denoising noise is drawn in the model, where a sample no longer knows its place.
            sample["img_metas"].data["noise_seed"] = mix(self.seed, 3, step, place)
        return sample


class _PartSampler(Sampler):
    """Addresses of one process's batches, step by step and part by part."""

    def __init__(self, num_samples: int, split: Split, seed: int, steps: range) -> None:
        self.num_samples, self.split, self.seed, self.steps = num_samples, split, seed, steps

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step in self.steps:
            chosen = batch_indices(self.num_samples, self.split.samples_per_step, self.seed, step)
            for part in range(self.split.parts):
                first = self.split.first_place(part)
                places = range(first, first + self.split.batch_size)
                yield [(step, place, chosen[place]) for place in places]

    def __len__(self) -> int:
        return len(self.steps) * self.split.parts


def training_batches(
    dataset: Any,
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    start: int,
    stop: int,
    parts: int = 1,
    rank: int = 0,
    num_ranks: int = 1,
    sampling_stop: int | None = None,
) -> DataLoader:
    """Collated batches of the steps ``start`` to ``stop - 1``, ``parts`` for each.

    Args:
        dataset: An mmdet3d dataset in training mode.
        batch_size: Samples of a batch.
        num_workers: Loading processes; 0 loads in this one.
        seed: Seed of the run.
        start: First step.
        stop: One past the last step.
        parts: Batches that a process accumulates in a step.
        rank: Of this process; it gets its share of each step.
        num_ranks: Processes.
        sampling_stop: First step without object sampling; None never leaves it out.
    """
    split = Split(batch_size=batch_size, parts=parts, rank=rank, num_ranks=num_ranks)
    return DataLoader(
        _SeededSamples(dataset, seed, sampling_stop),
        batch_sampler=_PartSampler(len(dataset), split, seed, range(start, stop)),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
