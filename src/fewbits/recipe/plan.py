"""The plan of a compression: the method of every tensor, or the reason why it is kept."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..coded import WEIGHT_DTYPES, Cause, Coverage, Reason, html_table
from ..engine.layers.targets import Survey, Target, dtype_of, survey
from ..errors import ModelError, TargetError, did_you_mean
from ..methods import (
    AnyMethod,
    Nearest,
    PostTrainingMethod,
    TrainingMethod,
    to_settings,
    trains,
    with_open_slope,
)
from .recipe import Recipe, Rule

__all__ = ["Plan", "PlanEntry", "fallback_of", "make_plan", "selected", "unmatched"]


_REASONS = 2  # number of reasons listed if no weight can be coded


@dataclass(frozen=True)
class PlanEntry:
    """One weight that can be coded, and its method (None keeps it in float).

    ``reason`` explains a method other than the recipe's, why the weight is kept, or what the method
    does otherwise with it. ``trained`` is the method that trains the weight, after ``method`` if
    there are both. ``rows`` are the input rows kept for its layer; None for those of the recipe.
    """

    target: Target
    method: PostTrainingMethod | None
    reason: str = ""
    trained: TrainingMethod | None = None
    rows: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "name": self.target.name,
            "kind": self.target.kind,
            "shape": list(self.target.shape),
            "method": None if self.method is None else to_settings(self.method),
            "reason": self.reason,
            **({} if self.trained is None else {"trained": to_settings(self.trained)}),
        }


@dataclass(frozen=True)
class Plan:
    """A recipe applied to one network.

    Attributes:
        recipe: the recipe.
        entries: every weight that can be coded, in the order of the network.
        kept: every other tensor, with the reason why it is kept.
        aliases: every other name of a tied tensor, with the name under which it is coded.
        bound: non-persistent buffers that are tied to a stored tensor, with its name.
        exact: kept tensors that share memory; they are stored unchanged.
        sizes: number of values of every floating-point or complex tensor; tied ones count once.
    """

    recipe: Recipe
    entries: tuple[PlanEntry, ...]
    kept: Mapping[str, Reason]
    aliases: Mapping[str, str]
    bound: Mapping[str, str] = field(default_factory=dict)
    exact: frozenset[str] = frozenset()
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, str]:
        """The reason why each tensor is left in float, by name."""
        left = {e.target.name: e.reason for e in self.entries if not (e.method or e.trained)}
        return {**self.kept, **left}

    @property
    def coverage(self) -> Coverage:
        """The share of the network that is quantized, and the largest tensor that is not."""
        coded = {e.target.name for e in self.entries if e.method or e.trained}
        return Coverage.of(self.sizes, coded, self.reasons)

    @property
    def ends(self) -> tuple[str, ...]:
        """The first and the last weight matrix of the network; () if there are at most two."""
        names = [e.target.name for e in self.entries if len(e.target.shape) > 1]
        return (names[0], names[-1]) if len(names) > 2 else ()

    def modules_of(self, name: str) -> tuple[str, ...]:
        """Return the modules that own a weight; several if it is tied."""
        target = next(e.target for e in self.entries if e.target.name == name)
        return target.homes

    def changed(self, name: str, method: PostTrainingMethod | None, reason: str) -> Plan:
        """Return the plan with another method and reason for one weight."""
        entries = tuple(
            replace(e, method=method, reason=reason) if e.target.name == name else e
            for e in self.entries
        )
        return replace(self, entries=entries)

    def with_open_slopes(self, slope: float) -> Plan:
        """Return the plan in which every method whose slope is open has this one."""
        rules = tuple(
            replace(rule, method=with_open_slope(rule.method, slope)) for rule in self.recipe.rules
        )
        entries = tuple(replace(e, method=with_open_slope(e.method, slope)) for e in self.entries)
        return replace(self, recipe=replace(self.recipe, rules=rules), entries=entries)

    def noted(self, name: str, note: str) -> Plan:
        """Return the plan with one more note on a weight, whose method stays the same."""
        entry = next(e for e in self.entries if e.target.name == name)
        reason = f"{entry.reason}; {note}" if entry.reason else note
        return self.changed(name, entry.method, reason)

    def kept_after(self, name: str, what: str) -> Plan:
        """Return the plan with a note on how a tensor changed that is not quantized.

        Raises:
            ModelError: the tensor shares memory with others, which would have to change with it.
        """
        if name in self.exact:
            raise ModelError(
                f"{name!r} is {what}, but it is expanded or shares memory with other tensors. Give "
                "it its own memory with clone() before compressing."
            )
        return replace(self, kept={**self.kept, name: self.kept[name].noted(what)})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "recipe": self.recipe.to_dict(),
            "weights": [entry.to_dict() for entry in self.entries],
            "kept": dict(self.kept),
            "aliases": dict(self.aliases),
            "quantized": self.coverage.to_dict(),
        }

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = [
            (e.target.name, e.target.kind, _short(e.trained or e.method), e.reason)
            for e in self.entries
        ]
        rows += [(name, "-", "keep", reason) for name, reason in self.kept.items()]
        rows += [(name, "-", "tied", f"same tensor as {to}") for name, to in self.aliases.items()]
        return rows

    def __repr__(self) -> str:
        count = len(self.entries) + len(self.kept)
        return f"<Plan for {count} tensors, which print() lists: {self.coverage}>"

    def _repr_html_(self) -> str:
        names = ("tensor", "kind", "method", "reason")
        return html_table(names, self._rows(), footer=str(self.coverage))

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)


def make_plan(model: nn.Module, recipe: Recipe) -> Plan:
    """Apply the rules of ``recipe`` to ``model``.

    Raises:
        TargetError: a pattern matches nothing, or nothing at all would be coded; not for a recipe
            that changes nothing.
        ModelError: a network that cannot be written to a file.
    """
    found = survey(model)
    if not found.targets and not recipe.lossless:
        raise TargetError(_nothing(model, found))
    matches = [{t.name for t in selected(rule.match, found.targets)} for rule in recipe.rules]
    for rule, names in zip(recipe.rules, matches, strict=True):
        if not names and not (recipe.lossless and rule.match == "*"):
            raise unmatched(rule.match, found.targets)
    entries = tuple(
        _entry(target, [r for r, n in zip(recipe.rules, matches, strict=True) if target.name in n])
        for target in found.targets
    )
    _check_views(found, entries)
    state = model.state_dict()
    sizes = {
        name: tensor.numel()
        for name, tensor in state.items()
        if name not in found.aliases and dtype_of(tensor) in WEIGHT_DTYPES
    }
    return Plan(
        recipe,
        entries,
        found.others,
        found.aliases,
        found.bound,
        frozenset(found.overlaps),
        sizes,
    )


def _nothing(model: nn.Module, found: Survey) -> str:
    """Explain why no weight can be coded, by the reasons that exclude the most values."""
    state = model.state_dict()
    matrices = [name for name in found.others if state[name].dim() > 1]
    names: dict[str, list[str]] = defaultdict(list)
    for name in sorted(matrices or found.others, key=lambda name: -state[name].numel()):
        names[found.others[name]].append(name)
    sizes = {why: sum(state[name].numel() for name in kept) for why, kept in names.items()}
    reasons = [
        f"{kept[0]}{f' and {len(kept) - 1} more' * (len(kept) > 1)}: {why}"
        for why, kept in sorted(names.items(), key=lambda item: -sizes[item[0]])[:_REASONS]
    ]
    return (
        f"this network ({type(model).__name__}) has no weight that can be coded: a floating-point "
        "parameter of a linear, convolution, embedding, recurrent or attention layer. "
        + (f"{'; '.join(reasons)}." if reasons else "It has no tensors.")
    )


def _check_views(found: Survey, entries: Iterable[PlanEntry]) -> None:
    """Refuse to quantize a weight that overlaps in memory with another tensor."""
    for entry in entries:
        names = (entry.target.name, *entry.target.also)
        name = next((name for name in names if name in found.overlaps), None)
        if name is not None and (entry.method or entry.trained):
            other = found.overlaps[name][0]
            if other == name:
                raise ModelError(
                    f"{name!r} is expanded: several weights share one value in memory, which "
                    "quantization would not keep equal. Give each its own memory with clone(), or "
                    "add a rule with 'method: keep'."
                )
            raise ModelError(
                f"{name!r} and {other!r} are different views of the same memory. A file stores "
                "each tensor separately, so quantizing one would silently change the other. Give "
                f"{other!r} its own memory with clone(), compute it in the forward pass instead "
                "of storing it as a parameter or buffer, or keep both with rules of "
                "'method: keep'."
            )


def fallback_of(method: PostTrainingMethod) -> PostTrainingMethod:
    """Return the method for weights whose inputs ``method`` cannot observe: nearest rounding."""
    return Nearest(**{"radius": "mse", **method.fallback_settings})


def _entry(target: Target, rules: Sequence[Rule]) -> PlanEntry:
    if not rules:
        return PlanEntry(target, None, Reason(Cause.NO_RULE))
    rule = rules[-1]
    if rule.method is None:
        return PlanEntry(target, None, Reason(Cause.RULE, repr(rule.match)))
    if trains(rule.method):
        return PlanEntry(target, None, "", rule.method)
    if not _can_see(target, rule.method):
        reason = Reason(Cause.FALLBACK, rule.method.name, target.view.blind)
        method = fallback_of(rule.method)
        remark = method.remark(target.view.columns(target.shape))
        return PlanEntry(target, method, reason.noted(remark) if remark else reason)
    remark = rule.method.remark(target.view.columns(target.shape))
    return PlanEntry(target, rule.method, remark, rows=rule.calibration_rows)


def _can_see(target: Target, method: PostTrainingMethod) -> bool:
    """Return whether calibration shows the method what it needs of a weight."""
    needs = method.capabilities
    if needs.needs_inputs == "none" or target.view.in_sight:
        return True
    return target.looked_up and (target.seen_at is not None or needs.codes_lookups)


def _short(method: AnyMethod | None) -> str:
    if method is None:
        return "keep"
    settings = to_settings(method)
    return " ".join([method.name, *(f"{k}={v}" for k, v in settings.items() if k != "method")])


def selected(pattern: str, targets: Iterable[Target]) -> tuple[Target, ...]:
    """Return the targets that match a pattern.

    ``*`` matches all of them. Any other pattern is the name of a weight or of its layer; if there
    is none of that name, it is a layer class (``Conv2d``), a glob on these names (``layer1.*``), or
    a regular expression on them after ``re:``. Exact names come first, so ``blk[0]`` matches the
    layer of that name although a glob would read the brackets differently. A tied weight matches
    by any of its names.

    Raises:
        TargetError: an invalid regular expression.
    """
    targets = tuple(targets)
    exact = tuple(target for target in targets if pattern in _names(target))
    if exact and pattern != "*":
        return exact
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise TargetError(
                f"pattern {pattern!r} is not a valid regular expression: {error}"
            ) from None
        return tuple(t for t in targets if any(map(expression.fullmatch, _names(t))))
    return tuple(
        target
        for target in targets
        if pattern == target.kind or any(fnmatchcase(name, pattern) for name in _names(target))
    )


def unmatched(pattern: str, targets: Iterable[Target]) -> TargetError:
    """Build the error for a pattern that matches nothing, naming the closest layers."""
    targets = list(targets)
    known = {name for target in targets for name in (target.module, target.name, target.kind)}
    known.discard("")
    hint = did_you_mean(pattern.removeprefix("re:").strip("*."), sorted(known))
    modules = dict.fromkeys(target.module or target.name for target in targets)
    first = ", ".join(list(modules)[:5])
    listing = hint or (f" Layers of this network: {first}, ..." if targets else "")
    return TargetError(
        f"pattern {pattern!r} matches no weight of this network ({len(targets)} can be coded)."
        f"{listing} A pattern is the name of a layer or weight, a glob such as 'layer1.*', a layer "
        "class such as 'Conv2d', or a regular expression after 're:'."
    )


def _names(target: Target) -> tuple[str, ...]:
    owners = (name.rpartition(".")[0] for name in target.also)
    return (target.name, target.module, *target.also, *owners)
