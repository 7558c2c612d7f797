"""A fixed share of the scenes: always the same, spread evenly, small shares inside larger ones."""

from collections.abc import Iterable

from aqr_model.data.errors import DataError

_PERIODS = range(2, 7)
_CROWDING = 4.0  # weight of nearness in the list against balance over the periods


def scene_subset(names: Iterable[str], share: float) -> tuple[str, ...]:
    """Choose a share of scenes.

    Scenes that follow one another often resemble each other (one drive), and conditions may
    alternate in the list with some short period. Every k-th scene would meet such a period with
    one condition only. So scenes are added one by one, each time the one that is rarest among the
    chosen by its place modulo 2 to 6 and that stands far from them in the list.

    Args:
        names: Scene names; repetitions and order do not matter.
        share: In (0, 1].

    Returns:
        At least one scene, sorted by name. The scenes of a small share are among those of a larger.

    Raises:
        DataError: If there are no scenes or the share is out of range.
    """
    if not 0 < share <= 1:
        raise DataError(f"0 < share <= 1 must hold for a share of scenes, but got {share}.")
    ordered = sorted(set(names))
    if not ordered:
        raise DataError("A share of scenes needs scenes to choose from, but got none.")
    if share == 1:
        return tuple(ordered)
    count = max(1, round(share * len(ordered)))
    return tuple(ordered[i] for i in sorted(_spread(len(ordered), count)))


def _spread(size: int, count: int) -> list[int]:
    chosen: list[int] = []
    cost = [0.0] * size
    for _ in range(count):
        best = min(range(size), key=cost.__getitem__)
        chosen.append(best)
        for i in range(size):
            cost[i] += sum(period for period in _PERIODS if (i - best) % period == 0)
            cost[i] += _CROWDING / (1 + abs(i - best))
        cost[best] = float("inf")
    return chosen
