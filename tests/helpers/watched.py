"""A config that notes which of its keys are read."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

KeyPath = tuple[str, ...]


class Watched(dict):
    """A dict, its keys attributes as well, that notes every key that it is asked for.

    Args:
        content: Nested dicts; those inside are watched, too.
        noted: Takes the paths.
        place: Path of this dict.
    """

    def __init__(self, content: Mapping[str, Any], noted: set[KeyPath], place: KeyPath = ()):
        watched = {
            name: self._watch(value, noted, (*place, name)) for name, value in content.items()
        }
        super().__init__(watched)
        self.__dict__.update(_noted=noted, _place=place)

    @classmethod
    def _watch(cls, value: Any, noted: set[KeyPath], place: KeyPath) -> Any:
        return cls(value, noted, place) if isinstance(value, Mapping) else value

    def _note(self, name: Any) -> None:
        self.__dict__["_noted"].add((*self.__dict__["_place"], str(name)))

    def __getitem__(self, name: Any) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def __contains__(self, name: Any) -> bool:
        self._note(name)
        return super().__contains__(name)

    def get(self, name: Any, default: Any = None) -> Any:
        self._note(name)
        return super().get(name, default)

    def pop(self, name: Any, *default: Any) -> Any:
        self._note(name)
        return super().pop(name, *default)

    def copy(self) -> "Watched":
        return Watched(dict(self.items()), self.__dict__["_noted"], self.__dict__["_place"])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __deepcopy__(self, memo: dict) -> "Watched":
        plain = {name: deepcopy(value, memo) for name, value in self.items()}
        return Watched(plain, self.__dict__["_noted"], self.__dict__["_place"])
