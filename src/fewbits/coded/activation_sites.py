"""Names of the places in a network where activations are on grids.

The input of a module has the module's name; what it gives ends in ``:out``. A module that is called
several times in a forward pass has a place for each call, which ends in ``@k``. A module may have
such a name itself, and then the name means that module.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from ..errors import ConfigError

__all__ = ["ActivationSite", "site_name"]

_OUT = ":out"


@dataclass(frozen=True)
class ActivationSite:
    """Where a grid acts.

    Attributes:
        module: name of the module.
        call: number of the call in a forward pass; None for all.
        output: on what the module gives, not on what it gets.
    """

    module: str
    call: int | None = None
    output: bool = False

    @classmethod
    def of(cls, name: str, modules: Container[str] = ()) -> ActivationSite:
        """Return the place of a site's name, read as one of ``modules`` first."""
        if name in modules:
            return cls(name)
        rest, mark, call = name.rpartition("@")
        number = int(call) if mark and call.isascii() and call.isdecimal() else None
        rest = name if number is None else rest
        if rest in modules:
            return cls(rest, number)
        return cls(rest.removesuffix(_OUT), number, rest.endswith(_OUT))


def site_name(
    module: str, call: int, calls: int, *, output: bool = False, modules: Container[str] = ()
) -> str:
    """Return the name of a site: the module's, with the call where there are several.

    Where one of ``modules``, all names of the network, has that very name, the number of the call
    gets zeros in front.

    Raises:
        ConfigError: modules whose names leave none for the output of another.
    """
    place = module + _OUT * output
    name = place if calls == 1 else f"{place}@{call}"
    while calls > 1 and name in modules:
        name = f"{place}@0{name.removeprefix(place + '@')}"
    if ActivationSite.of(name, modules) != ActivationSite(
        module, None if calls == 1 else call, output
    ):
        raise ConfigError(
            f"the network has modules {module!r} and {place!r}, and the latter name means the "
            "output of the former in a file. Rename one of them."
        )
    return name
