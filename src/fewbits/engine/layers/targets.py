"""Survey of a network: which tensors can be coded, under which names, and why others cannot.

Every tensor of the state dict is accounted for: it is a weight that some layer kind presents as a
matrix, an alias of a tied weight, or it is kept in float for a stated reason.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ...coded import FLOAT_DTYPES, RAW_DTYPES, Cause, Reason
from ...errors import ModelError
from ...ops.levels.grid import all_finite
from ..network.naming import joined
from ..network.shared_memory import overlaps, storage_problem, ties
from .derived import derived_from
from .views import WeightView, kind_of

__all__ = [
    "Survey",
    "Target",
    "biases_beside",
    "check_finite",
    "dtype_of",
    "retie",
    "survey",
    "vector_targets",
]

# what torch calls a parameter that a parametrization computes, whose plain name training keeps
_PARAMETRIZED = re.compile(r"\bparametrizations\.([^.]+)\.original$")
_ENDINGS = ("orig", "g", "v", "u", "mask")
_Use: TypeAlias = "tuple[str, WeightView]"
_Homes: TypeAlias = "Mapping[str, tuple[str, nn.Module, str]]"


@dataclass(frozen=True)
class Target:
    """One weight that can be coded.

    name: name in the state dict.
    module: name of the module that holds it ("" for the network itself).
    kind: class name of that module.
    shape: shape of the tensor.
    view: its matrix view.
    also: other state-dict names of the same tensor (tied weights).
    places: one name per module and parameter; of a module with two names, only the first.
    homes: the modules that hold it, each once, under its first name.
    uses: the modules that hold it as a weight of a known kind, each with its own view of it.
    """

    name: str
    module: str
    kind: str
    shape: tuple[int, ...]
    view: WeightView
    also: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    homes: tuple[str, ...] = ()
    uses: tuple[_Use, ...] = ()

    @property
    def looked_up(self) -> bool:
        """Whether some layer looks rows of the weight up, rather than multiply with it."""
        return any(view.lookup is not None for _, view in self.uses)

    @property
    def seen_at(self) -> _Use | None:
        """The first layer that multiplies the weight with inputs that can be seen, and its view."""
        return next((use for use in self.uses if use[1].inputs is not None), None)


@dataclass(frozen=True)
class Survey:
    """What can be coded in a network, and what cannot.

    Attributes:
        targets: weights that can be coded, in order of the network.
        others: name of every other tensor to the reason.
        aliases: other names of tied tensors, each mapped to the first.
        overlaps: tensors that share memory without being the same tensor, with their partners.
        bound: buffers outside the state dict that are the same tensor as one in it.
    """

    targets: tuple[Target, ...]
    others: Mapping[str, Reason]
    aliases: Mapping[str, str]
    overlaps: Mapping[str, tuple[str, ...]]
    bound: Mapping[str, str]


def survey(model: nn.Module) -> Survey:
    """Account for every tensor of ``model.state_dict()``.

    Raises:
        ModelError: a tensor that is not materialized, or extra state that is not a tensor.
    """
    state = _checked_state(model)
    homes = _homes(model)
    everything = {**state, **dict(model.named_buffers())}
    tied = ties(everything)
    aliases = {alias: owner for alias, owner in tied.items() if alias in state}
    bound = {alias: owner for alias, owner in tied.items() if alias not in state}
    targets: list[Target] = []
    found: set[str] = set()
    uses: defaultdict[str, list[_Use]] = defaultdict(list)
    for prefix, module in model.named_modules():
        kind = kind_of(module)
        if kind is None:
            continue
        for view in kind.views(module):
            name = joined(prefix, view.parameter)
            tensor = state.get(name)
            first = aliases.get(name, name)
            uses[first].append((prefix, view))
            if tensor is None or first in found or not _is_trained(homes, name, tensor):
                continue
            found.add(first)
            also = tuple(alias for alias, owner in aliases.items() if owner == first)
            names = tuple(n for n in (first, *also) if n != name)
            shape, kind_name = tuple(tensor.shape), type(module).__name__
            places = _places(homes, (name, *names))
            owners = (homes[other][0] for other in places[1:])
            held = tuple(dict.fromkeys((prefix, *owners)))
            targets.append(Target(name, prefix, kind_name, shape, view, names, places, held))
    targets = [replace(t, uses=_alike(uses[aliases.get(t.name, t.name)], t)) for t in targets]
    coded = {target.name: target for target in targets}
    renamed = {other: t.name for t in targets for other in t.also}
    others = {
        name: _reason(homes, name, tensor)
        for name, tensor in state.items()
        if name not in coded and name not in renamed and name not in aliases
    }
    kept = {alias: owner for alias, owner in aliases.items() if owner in others}
    return Survey(tuple(targets), others, renamed | kept, overlaps(everything), bound)


def _alike(uses: Iterable[_Use], target: Target) -> tuple[_Use, ...]:
    """Return the uses that see the same matrix as the target's own view."""
    form = target.view.rows, target.view.groups, target.view.layout
    return tuple(use for use in uses if (use[1].rows, use[1].groups, use[1].layout) == form)


def biases_beside(weights: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return those of ``names`` that are biases of the modules that hold ``weights``."""
    homes = {name.rpartition(".")[0] for name in weights}
    split = [(name, *name.rpartition(".")[::2]) for name in names]
    return [name for name, home, leaf in split if home in homes and _is_bias(leaf)]


def vector_targets(model: nn.Module, names: Iterable[str]) -> tuple[Target, ...]:
    """Return the trained float vectors among ``names``, each as a matrix of one row.

    These are biases and scales of normalizations: parameters, not statistics.
    """
    targets = []
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = _home(model, name)
        parameter = None if module is None else module._parameters.get(leaf)
        if module is None or parameter is None or parameter.dim() != 1:
            continue
        if _is_codable(parameter):
            kind, shape = type(module).__name__, tuple(parameter.shape)
            view = WeightView(leaf, 1)
            targets.append(Target(name, path, kind, shape, view, (), (name,), (path,)))
    return tuple(targets)


def check_finite(
    model: nn.Module,
    touch: Callable[[int], None] | None = None,
    *,
    advice: str = "Load an intact checkpoint.",
) -> None:
    """Check that a network has no NaN or infinite weights and no NaN buffers (masks may be -inf).

    ``touch`` is called with the size of every tensor before it is read.

    Raises:
        ModelError: names the first such tensor, the number of bad values and the first one's index.
    """
    named = model.named_parameters(remove_duplicate=False)
    parameters = {_PARAMETRIZED.sub(r"\1", name) for name, _ in named}
    for name, tensor in model.state_dict().items():
        floating = isinstance(tensor, Tensor) and (
            tensor.is_floating_point() or tensor.is_complex()
        )
        if not floating:
            continue
        if touch is not None:
            touch(tensor.nbytes)
        # torch lacks isfinite for float8; casting keeps NaN.
        values = tensor.float() if tensor.element_size() < 2 else tensor
        exact = name in parameters or "running_" in name
        if values.is_floating_point() and all_finite(values):
            continue
        bad = ~torch.isfinite(values) if exact else torch.isnan(values)
        if bool(bad.any()):
            where = tuple(bad.nonzero()[0].tolist())
            raise ModelError(
                f"tensor {name!r} contains {int(bad.sum())} NaN or infinite values of "
                f"{tensor.numel()}, the first at index {where}. {advice}"
            )


def retie(model: nn.Module, aliases: Mapping[str, str]) -> None:
    """Make tied names one tensor again: copying unties tensors that only shared memory."""
    for alias, owner in aliases.items():
        home, other = (_home(model, name) for name in (alias, owner))
        if home is None or other is None:
            continue
        leaf, shared_leaf = (name.rpartition(".")[2] for name in (alias, owner))
        mine = (home._parameters | home._buffers).get(leaf)
        shared = (other._parameters | other._buffers).get(shared_leaf)
        if mine is None or shared is None:
            continue
        if leaf in home._buffers:
            home._buffers[leaf] = shared.detach() if isinstance(shared, nn.Parameter) else shared
        elif isinstance(shared, nn.Parameter):
            home._parameters[leaf] = shared
        else:
            mine.data = shared


def _home(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name.rpartition(".")[0])
    except AttributeError:  # a state-dict hook chose the name
        return None


def _checked_state(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a scripted network cannot be compressed, because its layers cannot be observed. "
            "Compress the network before torch.jit.script, and script it after loading."
        )
    state = model.state_dict()
    for name, tensor in state.items():
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ModelError(
                f"the name {name!r} contains an unpaired surrogate, which a file cannot store. "
                "Rename the module."
            )
        if not isinstance(tensor, Tensor):
            raise ModelError(
                f"state-dict entry {name!r} is a {type(tensor).__name__}, not a tensor; networks "
                "with extra state cannot be written. Remove it, or compress the inner network."
            )
        why = storage_problem(tensor)
        if why:
            raise ModelError(f"tensor {name!r} {why}")
        if dtype_of(tensor) not in RAW_DTYPES:
            raise ModelError(
                f"tensor {name!r} has dtype {dtype_of(tensor)}, which a file cannot store. Convert "
                f"it to one of {', '.join(sorted(RAW_DTYPES))}."
            )
    return state


def _homes(model: nn.Module) -> dict[str, tuple[str, nn.Module, str]]:
    """Map each tensor name to the first name of its module, the module, and the leaf name."""
    first: dict[int, str] = {}  # by object: modules may define equality
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        own = first.setdefault(id(module), path)
        for leaf in (*module._parameters.keys(), *module._buffers.keys()):  # scripts have no dicts
            found[joined(path, leaf)] = (own, module, leaf)
    return found


def _places(homes: _Homes, names: Iterable[str]) -> tuple[str, ...]:
    """Return one name for each pair of module and leaf among ``names``."""
    found: dict[tuple[str, str], str] = {}
    for name in names:
        if name in homes:
            found.setdefault((homes[name][0], homes[name][2]), name)
    return tuple(found.values())


def _is_trained(homes: _Homes, name: str, tensor: Tensor) -> bool:
    """Return whether a weight can be coded: a floating parameter, which methods may change."""
    home = homes.get(name)
    return _is_codable(tensor) and home is not None and home[2] in home[1]._parameters


def _is_codable(tensor: Tensor) -> bool:
    return dtype_of(tensor) in FLOAT_DTYPES and tensor.numel() > 0


def _is_bias(leaf: str) -> bool:
    return "bias" in leaf.split("_")


def _reason(homes: _Homes, name: str, tensor: Tensor) -> Reason:
    if name not in homes:
        return Reason(Cause.NO_MODULE)
    _, module, leaf = homes[name]
    kind = type(module).__name__
    known = kind_of(module) is not None
    causes = [
        (dtype_of(tensor) not in FLOAT_DTYPES, Reason(Cause.DTYPE, dtype_of(tensor))),
        (tensor.numel() == 0, Reason(Cause.EMPTY)),
        (_is_derived(module, leaf), _derived_reason(name, homes)),
        (leaf in module._buffers, Reason(Cause.BUFFER, kind)),
        (_is_bias(leaf), Reason(Cause.BIAS)),
        (tensor.dim() < 2, Reason(Cause.VECTOR, kind)),
        (known, Reason(Cause.NO_MATRIX, kind)),
    ]
    return next((why for holds, why in causes if holds), Reason(Cause.NO_LAYER_KIND, kind))


def _derived_reason(name: str, homes: _Homes) -> Reason:
    made = derived_from(name, homes)
    if made is None:
        return Reason(Cause.PARAMETRIZED, "", "")
    return Reason(Cause.PARAMETRIZED, f" ({made.kind})", f": {made.removal()}")


def _is_derived(module: nn.Module, leaf: str) -> bool:
    """Return whether a module computes its weight from this tensor and others.

    Parametrizations are modules of their own; the older weight norm, spectral norm and pruning
    leave the weight as a plain attribute next to ``weight_orig``, or ``weight_g`` and ``weight_v``.
    """
    if isinstance(module, ParametrizationList):
        return True
    base, _, ending = leaf.rpartition("_")
    return ending in _ENDINGS and isinstance(module.__dict__.get(base), Tensor)


def dtype_of(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype as used in files."""
    return str(tensor.dtype).removeprefix("torch.")
