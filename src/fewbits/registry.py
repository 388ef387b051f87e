"""One registry for everything that is looked up by name: ours, and that of installed packages."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from .errors import ConfigError, FewbitsWarning, did_you_mean, shorten

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to entries of one kind: methods, codecs, exporters and the like.

    Entries come from two places: code that calls :meth:`register`, and installed packages that
    declare an entry point in ``group``, whose value is the entry itself. Packages are looked for at
    the first look-up, and each is imported when its entry is asked for, or when all are listed.

    >>> colours = Registry[str]("colour")
    >>> colours.register("red")("#f00")
    '#f00'
    >>> colours["red"]
    '#f00'

    Args:
        kind: what one entry is called in messages.
        group: of entry points, such as "fewbits.methods"; empty for code only.
        check: raises an error for an entry that must not be registered under a name.
    """

    def __init__(
        self, kind: str, group: str = "", check: Callable[[str, T], None] | None = None
    ) -> None:
        self.kind, self.group = kind, group
        self._check = check
        self._entries: dict[str, T] = {}
        self._declared: dict[str, list[EntryPoint]] | None = None
        self._loaded: set[str] = set()
        self._broken: dict[str, str] = {}
        self._warned: set[str] = set()

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under ``name``."""
        if not isinstance(name, str):
            raise ConfigError(f"a {self.kind} is registered by name. Got {shorten(name)} instead.")

        def add(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(f"the {self.kind} {name!r} is registered twice")
            if self._check is not None:
                self._check(name, entry)
            self._entries[name] = entry
            return entry

        return add

    def unregister(self, name: str) -> T:
        """Remove what code registered under ``name``, and return it."""
        if name not in self._entries:
            raise self.unknown(name)
        return self._entries.pop(name)

    def __getitem__(self, name: str) -> T:
        points = self._points().get(name, []) if isinstance(name, str) else []
        if points:
            return self._load(name, points)
        if name not in self._entries:
            raise self.unknown(name)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._entries or name in self._points())

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self.items()])

    def __len__(self) -> int:
        return len(self.items())

    def items(self) -> list[tuple[str, T]]:
        """Return (name, entry) pairs in order of registration, then those of packages by name.

        Warns, once, of each package whose entry cannot be used, and leaves that entry out.
        """
        for name, points in sorted(self._points().items()):
            try:
                self._load(name, points)
            except ConfigError as error:
                if name not in self._warned:
                    self._warned.add(name)
                    warnings.warn(f"{error} It is left out.", FewbitsWarning, stacklevel=3)
        return list(self._entries.items())

    def values(self) -> list[T]:
        """Return the entries in the order of :meth:`items`."""
        return [entry for _, entry in self.items()]

    def ready(self) -> list[T]:
        """Return the entries that need no import: those of code, and of packages in use."""
        return list(self._entries.values())

    def unknown(self, name: str) -> ConfigError:
        """Return the error for a name that is not registered."""
        names = sorted(self._names())
        known = f"Known: {', '.join(names)}."
        return ConfigError(
            f"unknown {self.kind} {shorten(name)}. {known}" + did_you_mean(str(name), names)
        )

    def _names(self) -> set[str]:
        return {*self._entries, *self._points()}

    def _points(self) -> dict[str, list[EntryPoint]]:
        """Return the entry points of installed packages by name; imports none of them."""
        if self._declared is None:
            found: dict[str, list[EntryPoint]] = {}
            if self.group:
                from importlib.metadata import entry_points  # noqa: PLC0415  (not at import)

                for point in entry_points(group=self.group):
                    found.setdefault(point.name, []).append(point)
            self._declared = found
        return self._declared

    def _load(self, name: str, points: list[EntryPoint]) -> T:
        if name not in self._loaded:
            if name in self._broken:
                raise ConfigError(self._broken[name])
            try:
                self._entries[name] = self._import(name, points)
            except ConfigError as error:
                self._broken[name] = str(error)
                raise
            self._loaded.add(name)
        return self._entries[name]

    def _import(self, name: str, points: list[EntryPoint]) -> T:
        """Import the entry that one package declares, and check it."""
        point = points[0]
        if len(points) > 1:
            raise ConfigError(
                f"the {self.kind} {name!r} is declared by several packages: "
                f"{', '.join(sorted(map(_package, points)))}. Uninstall all but one."
            )
        told = (
            f"the {self.kind} {name!r} of the package {_package(point)} (entry point "
            f"'{point.name} = {point.value}' in {self.group!r})"
        )
        if name in self._entries and not _same_package(self._entries[name], point):
            raise ConfigError(self._clash(told, name))
        try:
            entry: T = point.load()
        except (Exception, SystemExit) as error:  # whatever a foreign module does
            raise ConfigError(
                f"{told} cannot be imported: {type(error).__name__}: {error}. Repair or uninstall "
                "the package."
            ) from error
        if self._entries.get(name, entry) is not entry:
            raise ConfigError(self._clash(told, name))
        own = getattr(entry, "name", name)
        if own != name:
            raise ConfigError(f"{told} calls itself {shorten(own)}: both names must be the same.")
        if self._check is not None and name not in self._entries:
            try:
                self._check(name, entry)
            except ConfigError as error:
                raise ConfigError(f"{told} cannot be used: {error}") from None
        return entry

    def _clash(self, told: str, name: str) -> str:
        return (
            f"{told} has the name of another, which {_module(self._entries[name])} registers. "
            "Rename or uninstall it."
        )


def _module(entry: object) -> str:
    """Return the module of a class, of a function, or of the class of a value."""
    return str(getattr(entry, "__module__", type(entry).__module__))


def _same_package(entry: object, point: EntryPoint) -> bool:
    """Return whether an entry may be what ``point`` names: a package may re-export it."""
    return _module(entry).partition(".")[0] == point.module.partition(".")[0]


def _package(point: EntryPoint) -> str:
    return "of an unknown name" if point.dist is None else repr(point.dist.name)
