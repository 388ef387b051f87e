"""What of a network can be coded, under which names, and why the rest cannot.

Every tensor of the state dict is accounted for: it is a weight some layer kind shows as a matrix,
another name of a tied weight, or it stays as it is for a stated reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..coded import FLOAT_DTYPES, RAW_DTYPES
from ..errors import ModelError, TargetError, did_you_mean
from .views import WeightView, kind_of

__all__ = [
    "Survey",
    "Target",
    "biases_beside",
    "check_finite",
    "matches",
    "retie",
    "survey",
    "unmatched",
    "vector_targets",
]


@dataclass(frozen=True)
class Target:
    """One weight that can be coded.

    Attributes:
        name: name in the state dict.
        module: name of the module that holds it ("" for the network itself).
        kind: class name of that module.
        shape: shape of the tensor.
        view: its matrix view.
        also: other state-dict names of the same tensor (tied weights).
    """

    name: str
    module: str
    kind: str
    shape: tuple[int, ...]
    view: WeightView
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """Targets in order of the network, and (name, reason) of every other tensor."""

    targets: tuple[Target, ...]
    others: Mapping[str, str]
    aliases: Mapping[str, str]


def survey(model: nn.Module) -> Survey:
    """Account for every tensor of ``model.state_dict()``.

    Raises:
        ModelError: a tensor that is not materialised, or an extra state that is no tensor.
    """
    state = _checked_state(model)
    aliases = _aliases(state)
    targets: list[Target] = []
    found: set[str] = set()
    for prefix, module in model.named_modules():
        kind = kind_of(module)
        if kind is None:
            continue
        for view in kind.views(module):
            name = f"{prefix}.{view.parameter}".lstrip(".")
            tensor = state.get(name)
            first = aliases.get(name, name)
            if tensor is None or first in found or not _is_codable(tensor):
                continue
            found.add(first)
            also = tuple(alias for alias, owner in aliases.items() if owner == first)
            names = [n for n in (first, *also) if n != name]
            shape = tuple(tensor.shape)
            targets.append(Target(name, prefix, type(module).__name__, shape, view, tuple(names)))
    coded = {target.name: target for target in targets}
    renamed = {other: t.name for t in targets for other in t.also}
    others = {
        name: _reason(model, name, tensor)
        for name, tensor in state.items()
        if name not in coded and name not in renamed and name not in aliases
    }
    kept = {alias: owner for alias, owner in aliases.items() if owner in others}
    return Survey(tuple(targets), others, renamed | kept)


def biases_beside(weights: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return those of ``names`` that are biases of the modules of ``weights``."""
    homes = {name.rpartition(".")[0] for name in weights}
    split = [(name, *name.rpartition(".")[::2]) for name in names]
    return [name for name, home, leaf in split if home in homes and "bias" in leaf]


def vector_targets(model: nn.Module, names: Iterable[str]) -> tuple[Target, ...]:
    """Return the float vectors among ``names`` that are trained, each as a matrix of one row.

    Biases and the scales of normalizations: parameters, no statistics.
    """
    found = []
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = _home(model, name)
        parameter = None if module is None else module._parameters.get(leaf)
        if module is None or parameter is None or parameter.dim() != 1:
            continue
        if _is_codable(parameter):
            kind, shape = type(module).__name__, tuple(parameter.shape)
            found.append(Target(name, path, kind, shape, WeightView(leaf, 1)))
    return tuple(found)


def matches(pattern: str, target: Target) -> bool:
    """Tell whether a pattern means ``target``.

    A pattern is a layer class (``Conv2d``), a glob on the name of the weight or of its layer
    (``layer1.*``), or a regular expression on either after ``re:``. A tied weight goes by all of
    its names.
    """
    owners = (name.rpartition(".")[0] for name in target.also)
    names = (target.name, target.module, *target.also, *owners)
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise TargetError(f"pattern {pattern!r} is no regular expression: {error}") from None
        return any(expression.fullmatch(name) for name in names)
    return pattern == target.kind or any(fnmatchcase(name, pattern) for name in names)


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
        f"{listing} A pattern is a glob on layer or weight names, a layer class such as 'Conv2d', "
        "or a regular expression after 're:'."
    )


def check_finite(model: nn.Module) -> None:
    """Refuse a network with NaN or infinite weights, or NaN buffers (a mask may hold -inf).

    Raises:
        ModelError: names the first such tensor, how many values, and where the first one is.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        exact = name in parameters or "running_" in name
        bad = ~torch.isfinite(tensor) if exact else torch.isnan(tensor)
        if bool(bad.any()):
            where = tuple(bad.nonzero()[0].tolist())
            raise ModelError(
                f"tensor {name!r} holds {int(bad.sum())} NaN or infinite values of "
                f"{tensor.numel()}, the first at index {where}. Load a sound checkpoint."
            )


def retie(model: nn.Module, aliases: Mapping[str, str]) -> None:
    """Make tied names one tensor again: a copy unties what shared only memory."""
    for alias, owner in aliases.items():
        homes = [_home(model, name) for name in (alias, owner)]
        if homes[0] is None or homes[1] is None:
            continue
        for table in ("_parameters", "_buffers"):
            ours, theirs = (getattr(home, table) for home in homes)
            leaves = [name.rpartition(".")[2] for name in (alias, owner)]
            if leaves[0] in ours and leaves[1] in theirs:
                ours[leaves[0]] = theirs[leaves[1]]


def _home(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name.rpartition(".")[0])
    except AttributeError:  # a state-dict hook gave it a name of its own
        return None


def _checked_state(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a scripted network cannot be compressed: its layers cannot be watched. Compress the "
            "network before torch.jit.script, and script it after loading."
        )
    state = model.state_dict()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ModelError(
                f"state-dict entry {name!r} is a {type(tensor).__name__}, not a tensor; a network "
                "with extra state cannot be written. Remove it, or compress the inner network."
            )
        if tensor.is_meta or nn.parameter.is_lazy(tensor):
            raise ModelError(
                f"tensor {name!r} has no values yet (lazy or meta). Run one forward pass, or load "
                "the weights, before compressing."
            )
        if _dtype(tensor) not in RAW_DTYPES:
            raise ModelError(
                f"tensor {name!r} has dtype {_dtype(tensor)}, which a file cannot hold. Convert it "
                f"to one of {', '.join(sorted(RAW_DTYPES))}."
            )
    return state


def _aliases(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return later names of the same memory, each to its first name."""
    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        if tensor.numel() == 0:
            continue
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        owner = first.setdefault(place, name)
        if owner != name:
            aliases[name] = owner
    return aliases


def _is_codable(tensor: Tensor) -> bool:
    return _dtype(tensor) in FLOAT_DTYPES and tensor.numel() > 0


def _reason(model: nn.Module, name: str, tensor: Tensor) -> str:
    leaf = name.rpartition(".")[2]
    module = _home(model, name)
    if module is None:
        return "its name is of no module"
    kind = type(module).__name__
    derived = "parametrizations" in name or leaf.endswith(("_orig", "_g", "_v"))
    causes = [
        (not tensor.is_floating_point(), f"{_dtype(tensor)} values are kept exactly"),
        (tensor.numel() == 0, "it is empty"),
        (derived, "it feeds a parametrization; remove that to code the weight it makes"),
        (leaf in module._buffers, f"it is a buffer of {kind}"),
        ("bias" in leaf, "biases are kept"),
        (tensor.dim() < 2, f"a vector of {kind} is kept"),
    ]
    return next((text for holds, text in causes if holds), f"no layer kind takes {kind}")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
