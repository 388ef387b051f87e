"""One small registry for everything that is looked up by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from .errors import ConfigError, did_you_mean, shorten

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to values of one kind. A duplicate name is an error, so is an unknown one.

    >>> colours = Registry[str]("colour")
    >>> colours.register("red")("#f00")
    '#f00'
    >>> colours["red"]
    '#f00'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under ``name``."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(f"the {self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise self.unknown(name)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def unknown(self, name: str, *others: Registry[Any]) -> ConfigError:
        """Return the error for a name that neither this nor one of ``others`` has."""
        names = sorted({*self, *(entry for other in others for entry in other)})
        known = f"Known: {', '.join(names)}."
        return ConfigError(
            f"unknown {self.kind} {shorten(name)}. {known}" + did_you_mean(name, names)
        )

    def items(self) -> list[tuple[str, T]]:
        """Return (name, entry) pairs in order of registration."""
        return list(self._entries.items())
