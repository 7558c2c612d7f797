import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmcv.parallel import DataContainer
from torch.utils.data import Dataset

from aqr_model.engine import batches as module


@given(st.integers(1, 50), st.integers(1, 5), st.integers(0, 2**31 - 1), st.integers(0, 5))
def test_an_epoch_shows_each_sample_at_most_once(num_samples, batch_size, seed, epoch):
    per_epoch = num_samples // batch_size
    if per_epoch == 0:
        with pytest.raises(ValueError, match="at least one batch"):
            module.batch_indices(num_samples, batch_size, seed, 0)
        return
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    seen = [i for s in steps for i in module.batch_indices(num_samples, batch_size, seed, s)]
    assert len(seen) == len(set(seen)) == per_epoch * batch_size
    assert set(seen) <= set(range(num_samples))


def test_epochs_and_seeds_differ():
    orders = {
        tuple(module.batch_indices(40, 40, seed, step)) for seed in range(3) for step in range(3)
    }
    assert len(orders) == 9


class Draws(Dataset):
    """A dataset whose samples are what its pipeline drew."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        drawn = torch.tensor([float(index), np.random.rand(), torch.rand(()).item()])
        return {"drawn": DataContainer(drawn, stack=True)}


def batches(start, workers=0):
    return drawn(batch_size=3, num_workers=workers, seed=7, start=start, stop=10)


def drawn(**arguments):
    return [batch["drawn"] for batch in module.training_batches(Draws(), **arguments)]


def test_a_resumed_run_sees_what_it_would_have_seen():
    whole, resumed = batches(0), batches(6)
    assert len(whole) == 10
    for expected, got in zip(whole[6:], resumed, strict=True):
        assert torch.equal(expected, got)


def test_worker_processes_change_nothing():
    for expected, got in zip(batches(0), batches(0, workers=2), strict=True):
        assert torch.equal(expected, got)


def test_draws_differ_between_steps_and_places():
    drawn = torch.cat(batches(0))[:, 1]
    assert len(set(drawn.tolist())) == len(drawn)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=4))
def test_mix_is_a_seed(numbers):
    assert 0 <= module.mix(*numbers) < 2**32
    assert module.mix(*numbers) != module.mix(*numbers, 0)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_a_step_holds_the_same_samples_however_it_is_split(batch, parts, ranks, step):
    whole = batch * parts * ranks
    splits = [
        module.Split(batch_size=batch, parts=parts, rank=rank, num_ranks=ranks)
        for rank in range(ranks)
    ]
    places = [
        place
        for part in range(parts)
        for split in splits
        for place in range(split.first_place(part), split.first_place(part) + batch)
    ]
    assert places == list(range(whole))
    assert {split.samples_per_step for split in splits} == {whole}


def test_a_split_step_draws_what_a_whole_one_draws():
    common = {"num_workers": 0, "seed": 7, "start": 1, "stop": 3}
    whole = drawn(batch_size=4, **common)
    split = [drawn(batch_size=1, parts=2, rank=rank, num_ranks=2, **common) for rank in range(2)]
    for step, expected in enumerate(whole):
        got = [split[rank][2 * step + part] for part in range(2) for rank in range(2)]
        assert torch.equal(torch.cat(got), expected)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 1, "parts": 1.5}])
def test_a_split_needs_whole_numbers(wrong):
    with pytest.raises(ValueError, match="whole numbers above 0"):
        module.Split(**wrong)
