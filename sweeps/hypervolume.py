"""How far a front has come: the volume of what it dominates. Pure."""

from collections.abc import Iterable, Sequence

from sweeps.objectives import Objective

# The reference point of the hypervolume lies so far below the worst values, in their ranges: at the
# worst values themselves the ends of the front would count nothing.
REFERENCE_MARGIN = 0.1


def hypervolume(points: Iterable[Sequence[float]]) -> float:
    """Volume of what the points dominate above zero, where more is better on all axes.

    By slices along the last axis: exact, and quick for few axes and fronts of tens.
    """
    ordered = sorted((tuple(p) for p in points if min(p) > 0), key=lambda p: -p[-1])
    if not ordered:
        return 0.0
    if len(ordered[0]) == 1:
        return ordered[0][0]
    total, below = 0.0, list[tuple[float, ...]]()
    for count, point in enumerate(ordered, start=1):
        below = _front_with(below, point[:-1])
        height = point[-1] - (ordered[count][-1] if count < len(ordered) else 0.0)
        if height > 0:
            total += height * hypervolume(below)
    return total


def _front_with(
    front: list[tuple[float, ...]], point: tuple[float, ...]
) -> list[tuple[float, ...]]:
    """The front of a front and one more point, where more is better; the same if it adds none."""
    if any(all(a >= b for a, b in zip(each, point, strict=True)) for each in front):
        return front
    kept = [e for e in front if any(a > b for a, b in zip(e, point, strict=True))]
    return [*kept, point]


def volume_shares(
    rows: Sequence[Sequence[float]], objectives: Sequence[Objective]
) -> tuple[float, ...]:
    """How much of the front there was after each trial: its hypervolume, as a share of the last.

    The values are scaled to their ranges; objectives on which all are equal are left out.

    Args:
        rows: Values of the trials, in the order in which they came.
        objectives: What they are values of.
    """
    columns = []
    for objective, column in zip(objectives, zip(*rows, strict=True), strict=False):
        better = [objective.sign * value for value in column]
        low, high = min(better), max(better)
        if high > low:
            columns.append([(v - low) / (high - low) + REFERENCE_MARGIN for v in better])
    front, volumes = list[tuple[float, ...]](), list[float]()
    for point in zip(*columns, strict=True) if columns else ():
        wider = _front_with(front, point)
        volumes.append(volumes[-1] if wider is front else hypervolume(wider))
        front = wider
    return tuple(volume / volumes[-1] for volume in volumes)
