"""What the keys of a config must hold, declared in `READS` beside the code that reads them.

A key of `READS` is dotted. `*` stands for any one part; `**` at the end says that whoever builds
the value checks all that lies below. `aqr_model.preflight.keys` joins the tables of all modules of
this package, so that it can name a key that none of them has.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class ConfigError(ValueError):
    """A config that cannot be meant as it stands, with what to change."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """What a key may hold.

    Attributes:
        text: What it must be, as the end of "`KEY` must be".
        holds: Whether a value is such.
        must_be_given: A training cannot do without the key.
    """

    text: str
    holds: Callable[[Any], bool]
    must_be_given: bool = False

    def given(self) -> "Value":
        """The same, of a key that a training cannot do without."""
        return Value(text=self.text, holds=self.holds, must_be_given=True)

    def or_none(self) -> "Value":
        """The same or None."""
        return Value(text=f"{self.text}, or None", holds=lambda v: v is None or self.holds(v))


Reads = Mapping[str, Value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(holds, value))


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1


ANY = Value(text="any value", holds=lambda v: True)
FLAG = Value(text="True or False", holds=lambda v: isinstance(v, bool))
NUMBER_FROM_0 = Value(text="a number, 0 or more", holds=lambda v: _is_number(v) and v >= 0)
NUMBER_ABOVE_0 = Value(text="a number above 0", holds=lambda v: _is_number(v) and v > 0)
WHOLE_FROM_0 = Value(text="a whole number, 0 or more", holds=lambda v: _is_whole(v) and v >= 0)
WHOLE_ABOVE_0 = Value(text="a whole number above 0", holds=lambda v: _is_whole(v) and v > 0)
TEXT = Value(text="a text", holds=lambda v: isinstance(v, str))
SECTION = Value(text="a dict", holds=lambda v: isinstance(v, Mapping))
DATASETS = Value(
    text="a dataset, or a list of datasets",
    holds=lambda v: isinstance(v, Mapping) or (bool(v) and _is_list_of(v, SECTION.holds)),
)
HOOKS = Value(text="a list of hooks, a dict each", holds=lambda v: _is_list_of(v, SECTION.holds))
NAMES = Value(
    text="a list of names", holds=lambda v: _is_list_of(v, lambda name: isinstance(name, str))
)
SHARES = Value(
    text="a list of numbers above 0, at most 1", holds=lambda v: _is_list_of(v, _is_share)
)
INTERVAL = Value(
    text="a number above 0, or -1 for never",
    holds=lambda v: NUMBER_ABOVE_0.holds(v) or v == -1,
)
NAME_OR_NAMES = Value(
    text="a name or a list of names", holds=lambda v: isinstance(v, str) or NAMES.holds(v)
)
NORM = Value(
    text="a number above 0, or inf",
    holds=lambda v: NUMBER_ABOVE_0.holds(v) or v in ("inf", math.inf),
)


def one_of(*choices: str) -> Value:
    """One of some texts, or None for the first."""
    text = f"{' or '.join(map(repr, choices))}, or None"
    return Value(text=text, holds=lambda v: v is None or v in choices)
