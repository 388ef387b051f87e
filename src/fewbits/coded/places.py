"""Names of the places in a network where activations are on grids.

The input of a module has the module's name; what it gives ends in ``:out``. A module that is called
several times in a forward pass has a place for each call, which ends in ``@k``.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

__all__ = ["Place", "site_name"]

_OUT = ":out"


@dataclass(frozen=True)
class Place:
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
    def of(cls, name: str, modules: Container[str] = ()) -> Place:
        """Return the place of a site's name; that of one of ``modules`` is its input."""
        if name in modules:
            return cls(name)
        rest, mark, call = name.rpartition("@")
        number = int(call) if mark and call.isdecimal() else None
        rest = name if number is None else rest
        return cls(rest.removesuffix(_OUT), number, rest.endswith(_OUT))


def site_name(module: str, call: int, calls: int, *, output: bool = False) -> str:
    """Return the name of a site: the module's, with the call where there are several."""
    place = module + _OUT * output
    return place if calls == 1 else f"{place}@{call}"
