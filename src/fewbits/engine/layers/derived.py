"""Weights that a module makes of other tensors: weight norm, spectral norm, pruning, and others.

Each is known by the names of the tensors that it is made of, in the older form (hooks, such as
``weight_g`` and ``weight_v`` of ``torch.nn.utils.weight_norm``) and in the newer one (modules below
``parametrizations``).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["Derived", "derived_from", "difference"]

_NEWER = re.compile(r"(?:(.*)\.)?parametrizations\.([^.]+)\.(?:original\d*|\d+\..+)")
_OLDER = re.compile(r"(?:(.*)\.)?([^.]+)_(?:orig|mask|g|v|u)")


@dataclass(frozen=True)
class Derived:
    """How a weight is made, and of what.

    Attributes:
        kind: "weight norm", "spectral norm", "pruning", or "parametrization".
        module: name of the module that makes it.
        leaf: its name in that module.
        newer: whether it is a module below ``parametrizations``.
    """

    kind: str
    module: str
    leaf: str
    newer: bool

    @property
    def name(self) -> str:
        """Full name of the weight."""
        return f"{self.module}.{self.leaf}" if self.module else self.leaf

    def removal(self, module: str = "module") -> str:
        """Return the call that replaces it by the weight it makes; ``module`` is an expression."""
        functions = {
            "weight norm": "remove_weight_norm",
            "spectral norm": "remove_spectral_norm",
            "pruning": "prune.remove",
        }
        function = "parametrize.remove_parametrizations" if self.newer else functions[self.kind]
        return f"torch.nn.utils.{function}({module}, {self.leaf!r})"

    @property
    def call(self) -> str:
        """The call for the module of a network."""
        return self.removal(f"network.get_submodule({self.module!r})")


def derived_from(name: str, names: Collection[str]) -> Derived | None:
    """Return what the tensor ``name`` is a part of, among all ``names``; None if of nothing."""
    if found := _NEWER.fullmatch(name):
        module, leaf = found[1] or "", found[2]
        inside = f"{module}.parametrizations.{leaf}." if module else f"parametrizations.{leaf}."
        kind = "spectral norm" if f"{inside}0._u" in names else "parametrization"
        if f"{inside}original1" in names and f"{inside}original2" not in names:
            kind = "weight norm"
        return Derived(kind, module, leaf, newer=True)
    if found := _OLDER.fullmatch(name):
        module, leaf = found[1] or "", found[2]
        base = name.rpartition("_")[0]
        if f"{base}_g" in names and f"{base}_v" in names:
            return Derived("weight norm", module, leaf, newer=False)
        for other, kind in (("mask", "pruning"), ("u", "spectral norm")):
            if f"{base}_orig" in names and f"{base}_{other}" in names:
                return Derived(kind, module, leaf, newer=False)
    return None


def difference(stored: Collection[str], network: Collection[str]) -> str:
    """Explain, in a sentence, a weight that one side makes and the other does not; "" if none is.

    ``stored`` are the names in a file, ``network`` those of the network that it is loaded into.
    """
    stored, network = set(stored), set(network)
    made_there = _made(network - stored, network)
    made_here = _made(stored - network, stored)
    for name, there in made_there.items():
        if name in stored:
            return (
                f" The file has {name!r}, which the network makes by {there.kind}. Remove that "
                f"from the network before loading: {there.call}."
            )
        if name in made_here and made_here[name].newer != there.newer:
            forms = ("older form (torch.nn.utils)", "newer form (torch.nn.utils.parametrizations)")
            return (
                f" The file has the parts of {name!r} in the {forms[made_here[name].newer]} of "
                f"{there.kind}, the network in the {forms[there.newer]}. Build the network with "
                "that of the file."
            )
    for name, here in made_here.items():
        if name in network:
            return (
                f" The network has {name!r}, of which the file has the parts of a {here.kind}. "
                f"Load into a network that has it, and remove it afterwards: {here.call}. Or "
                "remove it before compressing."
            )
    return ""


def _made(parts: Collection[str], names: Collection[str]) -> dict[str, Derived]:
    """Return the weights that are made of ``parts``, by their names."""
    found = (derived_from(name, names) for name in sorted(parts))
    return {one.name: one for one in found if one is not None}
