import math

import pytest

from sweeps.stopping import Verdict, decide

PEERS = [0.30, 0.32, 0.34, 0.36]


def stops(rule: str, value: float, peers: list[float], **options: float | str) -> bool:
    settings = {"noise": 0.01, "val_share": 1.0, "mode": "max", **options}
    verdict = decide(rule, value=value, peers=peers, **settings)  # pyright: ignore
    assert verdict.reason
    return verdict.stop


def test_a_verdict_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="must carry a reason"):
        Verdict(stop=True, reason="")


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.9])
def test_none_stops_nothing(value: float) -> None:
    assert not stops("none", value, PEERS * 5)


# Median 0.33, margin 1.4 * 0.01: the threshold is 0.316.
@pytest.mark.parametrize(
    ("value", "stop"),
    [
        (0.40, False),
        (0.33, False),
        (0.3161, False),
        (0.33 - 1.4 * 0.01, False),
        (math.nextafter(0.33 - 1.4 * 0.01, 0.0), True),
        (0.3159, True),
        (0.0, True),
    ],
)
def test_safe_stops_below_median_less_margin(value: float, stop: bool) -> None:
    assert stops("safe", value, PEERS) is stop


def test_safe_waits_for_four_peers() -> None:
    assert not stops("safe", 0.0, PEERS[:3])
    assert stops("safe", 0.0, PEERS)


def test_fewer_scenes_widen_the_margin() -> None:
    # A quarter of the scenes doubles sigma: 0.33 - 0.028.
    assert stops("safe", 0.31, PEERS)
    assert not stops("safe", 0.31, PEERS, val_share=0.25)
    assert not stops("safe", 0.3021, PEERS, val_share=0.25)
    assert stops("safe", 0.3019, PEERS, val_share=0.25)


def test_no_noise_leaves_the_median() -> None:
    assert not stops("safe", 0.33, PEERS, noise=0.0)
    assert stops("safe", 0.3299, PEERS, noise=0.0)


def test_minimising_turns_safe_around() -> None:
    assert not stops("safe", 0.344, PEERS, mode="min")
    assert stops("safe", 0.3441, PEERS, mode="min")
    assert not stops("safe", 0.1, PEERS, mode="min")


@pytest.mark.parametrize(
    ("value", "peers", "stop"),
    [
        (0.1, [0.2], False),
        (0.1, [0.2, 0.05], False),
        (0.1, [0.2, 0.3], True),
        (0.2, [0.2, 0.3], False),
        (0.1, [0.2, 0.05, 0.01], False),
        (0.1, [0.2, 0.3, 0.01], True),
        (0.1, [0.2, 0.3, 0.01, 0.02], False),
        (0.1, [0.2, 0.3, 0.4, 0.02], True),
    ],
)
def test_fast_keeps_the_better_half(value: float, peers: list[float], stop: bool) -> None:
    assert stops("fast", value, peers) is stop
    assert stops("fast", -value, [-peer for peer in peers], mode="min") is stop


def test_the_reason_names_value_threshold_and_peers() -> None:
    verdict = decide("safe", value=0.3, peers=PEERS, noise=0.01, val_share=1.0)
    assert verdict.reason == (
        "0.3000 is below 0.3160, the median 0.3300 of 4 peers less 1.4 x 0.0100"
    )
    verdict = decide("fast", value=0.1, peers=[0.2, 0.3], noise=0.01, val_share=1.0)
    assert verdict.reason == "rank 3 of 3 at this rung, the best 2 go on"
    verdict = decide("safe", value=0.1, peers=[0.2], noise=0.01, val_share=1.0)
    assert verdict.reason == "1 of 4 peers at this rung"
