"""Values that follow the training: constant, cosine, staged, over fractional epochs."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same value from start to end.

    Args:
        value: The value.
    """

    value: float

    @property
    def extremes(self) -> tuple[float, ...]:
        """Values that bound all others."""
        return (self.value,)

    def at(self, epoch: float, total_epochs: float) -> float:
        """The value after `epoch` of `total_epochs`."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from one value to another, after holding the first.

    Args:
        start_value: Until `warmup_epochs`.
        end_value: From `end_epoch` on.
        warmup_epochs: How long the start is held, >= 0.
        end_epoch: Where the end is reached, behind the warm-up; the training's end if None.

    Raises:
        ValueError: If the epochs are out of order.
    """

    start_value: float
    end_value: float
    warmup_epochs: float = 0.0
    end_epoch: float | None = None

    def __post_init__(self) -> None:
        if not self.warmup_epochs >= 0:
            raise ValueError(f"`warmup_epochs >= 0` must hold, but got {self.warmup_epochs}.")
        if self.end_epoch is not None:
            self._check_end(self.end_epoch)

    @property
    def extremes(self) -> tuple[float, ...]:
        """Values that bound all others."""
        return (self.start_value, self.end_value)

    def at(self, epoch: float, total_epochs: float) -> float:
        """The value after `epoch` of `total_epochs`."""
        end = total_epochs if self.end_epoch is None else self.end_epoch
        self._check_end(end)
        share = min(max((epoch - self.warmup_epochs) / (end - self.warmup_epochs), 0.0), 1.0)
        if share in (0.0, 1.0):  # exactly, not to a rounding of the cosine
            return self.end_value if share else self.start_value
        way = (1 - math.cos(math.pi * share)) / 2
        return self.start_value + (self.end_value - self.start_value) * way

    def _check_end(self, end: float) -> None:
        if not end > self.warmup_epochs:
            raise ValueError(
                "A cosine schedule must end behind its warm-up, but got"
                f" warmup_epochs={self.warmup_epochs} and the end at epoch {end}. Set `end_epoch`,"
                " or shorten `warmup_epochs`."
            )


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Steps.

    Args:
        stages: (from_epoch, value), the first from epoch 0, each later than the one before.

    Raises:
        ValueError: If the stages are empty or out of order.
    """

    stages: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.stages]
        later = all(one < next_ for one, next_ in itertools.pairwise(starts))
        if not starts or starts[0] != 0 or not later:
            raise ValueError(
                "`stages` must be (from_epoch, value) pairs, the first from epoch 0 and each later"
                f" than the one before, but got {list(self.stages)}."
            )

    @property
    def extremes(self) -> tuple[float, ...]:
        """Values that bound all others."""
        return tuple(value for _, value in self.stages)

    def at(self, epoch: float, total_epochs: float) -> float:
        """The value after `epoch` of `total_epochs`."""
        return [value for start, value in self.stages if start <= epoch or start == 0][-1]


Schedule = Constant | Cosine | Staged
_TYPES: Mapping[str, type[Schedule]] = {"constant": Constant, "cosine": Cosine, "staged": Staged}


def read_schedule(config: Mapping[str, Any] | float) -> Schedule:
    """Read a schedule from a config.

    Args:
        config: A number, or a dict: `type` 'constant' with `value`; 'cosine' with `start_value`,
            `end_value` and, if wanted, `warmup_epochs` and `end_epoch`; 'staged' with `stages`,
            (from_epoch, value) pairs.

    Returns:
        The schedule.

    Raises:
        ValueError: For another type, an unknown, missing or non-finite entry.
    """
    if not isinstance(config, Mapping):
        return Constant(value=_number("value", config))
    kind = _TYPES.get(str(config.get("type")))
    if kind is None:
        raise ValueError(
            f"A schedule's `type` must be one of {', '.join(map(repr, _TYPES))}, but got"
            f" {config.get('type')!r}."
        )
    known = [field.name for field in fields(kind)]
    given = {key: value for key, value in config.items() if key != "type"}
    unknown = sorted(set(given) - set(known))
    needed = {"constant": ("value",), "cosine": ("start_value", "end_value"), "staged": ("stages",)}
    missing = [key for key in needed[config["type"]] if given.get(key) is None]
    if unknown or missing:
        raise ValueError(
            f"A schedule of type {config['type']!r} takes {', '.join(known)}, but got"
            f" {', '.join(unknown) or 'nothing unknown'} and lacks {', '.join(missing) or 'none'}."
        )
    return kind(**{key: _value(key, value) for key, value in given.items() if value is not None})


def make_schedule(
    config: Mapping[str, Any] | float, total_epochs: float
) -> Callable[[float], float]:
    """Make a function of the fractional epoch.

    Args:
        config: See `read_schedule`.
        total_epochs: Length of the training, > 0.

    Returns:
        Gives the value after so many epochs, which may be fractional.

    Raises:
        ValueError: For a config that is no schedule, or one that does not fit the training.
    """
    schedule = read_schedule(config)
    if not total_epochs > 0:
        raise ValueError(f"`total_epochs > 0` must hold, but got {total_epochs}.")
    schedule.at(0.0, total_epochs)
    return lambda epoch: schedule.at(epoch, total_epochs)


def _value(key: str, value: Any) -> Any:
    if key != "stages":
        return _number(key, value)
    pairs = isinstance(value, Sequence) and all(
        isinstance(pair, Sequence) and len(pair) == 2 for pair in value
    )
    if not pairs:
        raise ValueError(f"`stages` must be (from_epoch, value) pairs, but got {value!r}.")
    names = ("from_epoch", "value")
    return tuple(tuple(map(_number, names, pair)) for pair in value)


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"`{key}` of a schedule must be a finite number, but got {value!r}.")
    return float(value)
