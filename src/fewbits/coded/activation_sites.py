"""Names of the sites in a network where activations are quantized.

The input of a module has the module's name; its output has the suffix ``:out``. If a module is
called several times per forward pass, each call has a site of its own, with the suffix ``@k``. If a
module itself has such a name, the name means that module.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from ..errors import ConfigError

__all__ = ["ActivationSite", "site_name"]

_OUT = ":out"


@dataclass(frozen=True)
class ActivationSite:
    """A site in a network where activations are quantized.

    Attributes:
        module: name of the module.
        call: number of the call within a forward pass; None for all calls.
        output: whether it is the output of the module rather than its input.
    """

    module: str
    call: int | None = None
    output: bool = False

    @classmethod
    def of(cls, name: str, modules: Container[str] = ()) -> ActivationSite:
        """Parse the name of a site; names of ``modules`` take precedence."""
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
    """Return the name of a site: the module's, with the number of the call if there are several.

    If one of ``modules`` (all names in the network) has that very name, the number of the call is
    padded with zeros.

    Raises:
        ConfigError: the names of the modules leave none for this site.
    """
    place = module + _OUT * output
    name = place if calls == 1 else f"{place}@{call}"
    while calls > 1 and name in modules:
        name = f"{place}@0{name.removeprefix(place + '@')}"
    if ActivationSite.of(name, modules) != ActivationSite(
        module, None if calls == 1 else call, output
    ):
        raise ConfigError(
            f"the network has modules {module!r} and {place!r}, but files use the second name for "
            "the output of the first. Rename one of them."
        )
    return name
