import dataclasses

import cmt_cases  # noqa: F401  (registers the parts)
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aqr_model.cmt import denoising
from aqr_model.cmt.denoising import DenoisingSpec, GroundTruth, make_queries
from aqr_model.cmt.loss.step_totals import StepTotals, counted_over
from aqr_model.cmt.position import PointRange

RANGE = PointRange.from_list([-10.0, -10.0, -5.0, 10.0, 10.0, 5.0])
CPU = torch.device("cpu")
SPEC = DenoisingSpec(max_groups=3, noise_scale=1.0, noise_trans=0.0, split=0.75)


def truths(*counts):
    draw = torch.Generator().manual_seed(0)
    made = []
    for count in counts:
        boxes = torch.rand(count, 9, generator=draw) + 1
        made.append(GroundTruth(boxes=boxes, labels=torch.arange(count)))
    return made


def make(*counts, num_query=20, spec=SPEC):
    return make_queries(
        truths(*counts), num_query=num_query, spec=spec, point_range=RANGE, device=CPU
    )


def test_slots_hold_the_noisy_centres(monkeypatch):
    monkeypatch.setattr(denoising, "draw_noise", lambda like: torch.full_like(like, 0.5))
    queries = make(2, 3)
    assert queries.reference_points.shape == (2, 9, 3)
    assert queries.num_groups == 3
    assert queries.num_real == 15
    for sample, truth in enumerate(truths(2, 3)):
        for group in range(3):
            for k, box in enumerate(truth.boxes):
                want = RANGE.normalise(box[:3] + 0.25 * box[3:6])
                got = queries.reference_points[sample, group * 3 + k]
                torch.testing.assert_close(got, want)
    assert (queries.reference_points[0, [2, 5, 8]] == 0).all()


def test_targets_follow_their_slots():
    queries = make(2, 3)
    for i in range(queries.num_real):
        truth = truths(2, 3)[queries.sample[i]]
        k = queries.slot[i] % 3
        assert torch.equal(queries.boxes[i], truth.boxes[k])
        assert queries.labels[i] == truth.labels[k]


def test_large_noise_makes_background_and_stays_in_range(monkeypatch):
    noise = torch.zeros(6, 3)
    noise[1] = torch.tensor([0.5, 0.5, 0.5])
    noise[2] = torch.tensor([0.4, 0.4, 0.4])
    monkeypatch.setattr(denoising, "draw_noise", lambda like: noise)
    spec = DenoisingSpec(max_groups=3, noise_scale=100.0, noise_trans=0.0, split=0.75)
    queries = make(2, spec=spec)
    assert queries.is_background.tolist() == [False, True, False, False, False, False]
    assert queries.reference_points.min() >= 0
    assert queries.reference_points.max() == 1


def test_noise_is_uniform_in_both_directions():
    torch.manual_seed(0)
    noise = denoising.draw_noise(torch.zeros(20000))
    assert noise.min() >= -1
    assert noise.max() < 1
    assert abs(noise.mean().item()) < 0.02


@pytest.mark.parametrize(
    ("counts", "num_query", "groups"), [((2, 3), 20, 3), ((2, 3), 8, 2), ((2, 3), 3, 1)]
)
def test_groups_fit_the_number_of_queries(counts, num_query, groups):
    assert make(*counts, num_query=num_query).num_groups == groups


@pytest.mark.parametrize(("counts", "num_query"), [((0, 0), 20), ((2, 3), 2)])
def test_nothing_to_denoise(counts, num_query):
    assert make(*counts, num_query=num_query) is None
    off = DenoisingSpec(max_groups=0, noise_scale=1.0, noise_trans=0.0, split=0.75)
    assert make(2, 3, spec=off) is None


def test_classes_of_a_task():
    boxes = torch.arange(4 * 9.0).reshape(4, 9)
    truth = GroundTruth(boxes=boxes, labels=torch.tensor([0, 3, 2, 5]))
    task = truth.of_classes(2, 2)
    assert task.labels.tolist() == [1, 0]
    assert torch.equal(task.boxes, boxes[[1, 2]])


def test_bad_numbers():
    with pytest.raises(ValueError, match=r"must be >= 0, but got \(-1, 1.0, 0.75\)"):
        DenoisingSpec(max_groups=-1, noise_scale=1.0, noise_trans=0.0, split=0.75)


def test_seeded_noise_of_a_sample_does_not_depend_on_its_batch():
    seeded = [dataclasses.replace(truth, noise_seed=i) for i, truth in enumerate(truths(2, 3))]

    def queries(*chosen):
        return make_queries(chosen, num_query=20, spec=SPEC, point_range=RANGE, device=CPU)

    both = queries(*seeded)
    totals = StepTotals.count([[truth.labels for truth in seeded]], equal_slots=True)
    for i, truth in enumerate(seeded):
        torch.rand(7)  # what else is drawn does not matter
        with counted_over(totals):
            alone = queries(truth)
        assert torch.equal(alone.reference_points[0], both.reference_points[i])
        assert torch.equal(alone.is_background, both.is_background[both.sample == i])
        assert alone.num_groups == both.num_groups
    assert queries(seeded[0]).num_slots < both.num_slots, "by itself it has fewer slots"


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=4),
    st.booleans(),
)
def test_a_step_counts_the_queries_that_its_batches_make(batches, equal_slots):
    """Batches have the slots of their own fullest sample, unless all shall have the same."""
    drawn = [truths(*counts) for counts in batches]
    totals = StepTotals.merge(
        [
            StepTotals.count(
                [[truth.labels for truth in batch]], num_classes=9, equal_slots=equal_slots
            )
            for batch in drawn
        ]
    )
    with counted_over(totals):
        made = [
            make_queries(batch, num_query=20, spec=SPEC, point_range=RANGE, device=CPU)
            for batch in drawn
        ]
    largest = max(max(counts) for counts in batches)
    for counts, queries in zip(batches, made, strict=True):
        assert (queries is None) == (sum(counts) == 0)
        if queries is not None:
            own = largest if equal_slots else max(counts)
            assert queries.num_slots == own * min(3, 20 // own)
            assert queries.num_in_step == sum(q.num_real for q in made if q is not None)


def test_slots_follow_the_batch_as_in_the_public_code():
    """The public head pads to the fullest sample of a process's own batch."""
    totals = StepTotals.count([[torch.arange(2)], [torch.arange(6)]])
    with counted_over(totals):
        assert make(2).num_slots == 3 * 2
        assert make(6).num_slots == 3 * 6
    with counted_over(dataclasses.replace(totals, equal_slots=True)):
        assert make(2).num_slots == make(6).num_slots == 3 * 6
