"""What a rule means by a pattern: names first, then classes, globs and regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from ..engine.layers.targets import Target
from ..errors import TargetError, did_you_mean

__all__ = ["selected", "unmatched"]


def selected(pattern: str, targets: Iterable[Target]) -> tuple[Target, ...]:
    """Return those of ``targets`` that a pattern means.

    ``*`` is all of them. Another pattern is the name of a weight or of its layer; where there is
    none of that name, a layer class (``Conv2d``), a glob on these names (``layer1.*``), or a
    regular expression on them after ``re:``. Names may hold what a glob reads otherwise:
    ``blk[0]`` means the layer of that name. A tied weight goes by all of its names.

    Raises:
        TargetError: no regular expression.
    """
    targets = tuple(targets)
    exact = tuple(target for target in targets if pattern in _names(target))
    if exact and pattern != "*":
        return exact
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise TargetError(f"pattern {pattern!r} is no regular expression: {error}") from None
        return tuple(t for t in targets if any(map(expression.fullmatch, _names(t))))
    return tuple(
        target
        for target in targets
        if pattern == target.kind or any(fnmatchcase(name, pattern) for name in _names(target))
    )


def unmatched(pattern: str, targets: Iterable[Target]) -> TargetError:
    """Return the error for a pattern that matches nothing, naming the nearest layers."""
    targets = list(targets)
    known = {name for target in targets for name in (target.module, target.name, target.kind)}
    known.discard("")
    hint = did_you_mean(pattern.removeprefix("re:").strip("*."), sorted(known))
    modules = dict.fromkeys(target.module or target.name for target in targets)
    first = ", ".join(list(modules)[:5])
    listing = hint or (f" Layers of this network: {first}, ..." if targets else "")
    return TargetError(
        f"pattern {pattern!r} matches no weight of this network ({len(targets)} can be coded)."
        f"{listing} A pattern is a layer or weight name, a glob on them, a layer class such as "
        "'Conv2d', or a regular expression after 're:'."
    )


def _names(target: Target) -> tuple[str, ...]:
    owners = (name.rpartition(".")[0] for name in target.also)
    return (target.name, target.module, *target.also, *owners)
