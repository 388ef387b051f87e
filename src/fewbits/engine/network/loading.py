"""Load values into a network, all or none, respecting custom loaders and shared memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ...errors import ModelError
from ..paged.weight_store import WeightStore
from .filling import Filling, check_empty, lazy_names, without_memory
from .shared_memory import Extent, copy_into, extent_of, is_same, overlaps, storage_problem, ties

__all__ = ["cast_loss", "load_values", "plain_targets"]

Value = Callable[[str], Tensor]


def plain_targets(network: nn.Module) -> dict[str, Tensor] | None:
    """Return the tensors that loading fills, or None if the network has its own way of loading."""
    for module in network.modules():
        before = module._load_state_dict_pre_hooks.values()
        hooks = module._load_state_dict_post_hooks or not all(
            _is_left_behind(module, hook) for hook in before
        )
        own = type(module)._load_from_state_dict.__module__.startswith("torch.nn.modules.")
        if hooks or not own or type(module).load_state_dict is not nn.Module.load_state_dict:
            return None
    targets: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    targets |= dict(network.named_buffers(remove_duplicate=False))
    values = network.state_dict()
    plain = all(name in targets and _is_it(targets[name], value) for name, value in values.items())
    return {name: targets[name] for name in values} if plain else None


def _is_left_behind(module: nn.Module, hook: object) -> bool:
    """Return whether a hook is of a weight norm or spectral norm of torch that was removed."""
    kind = getattr(hook, "__module__", "")
    if kind == "torch.nn.utils.parametrizations":
        return not is_parametrized(module)
    name = getattr(getattr(hook, "fn", None), "name", "")
    return kind == "torch.nn.utils.spectral_norm" and f"{name}_orig" not in module._parameters


def load_values(
    network: nn.Module,
    names: Iterable[str],
    value: Value,
    source: Callable[[str], Hashable],
    *,
    targets: Mapping[str, Tensor] | None,
    versions: Mapping[str, Any],
    verify: Callable[[], None] | None = None,
    store: WeightStore | None = None,
    advice: str = "",
) -> None:
    """Fill ``network`` with values of its tensors; those on meta get new memory.

    Args:
        network: the network to fill.
        names: names of the tensors in the network.
        value: returns the values of a tensor, in its shape and in new memory; called again for
            names that share memory.
        source: identifies the tensor that the values come from; names with the same source are
            loaded together.
        targets: result of :func:`plain_targets`; None lets the network load in its own way, with
            all values in memory at once.
        versions: format versions of layers in these values, by module, as ``state_dict()`` reports
            them, for networks that convert older formats.
        verify: makes sure that ``value`` cannot fail for damage; None if it never does. Called if
            there is too much to decode before anything is changed.
        store: with it, large parameters become lazy weights, which it decodes by their source.
        advice: what to do if a network that loads in its own way refuses the values.

    Raises:
        ModelError: different values for the same memory, or values that the network refuses. It is
            then unchanged.
    """
    names = list(names)
    state = network.state_dict() if targets is None else targets
    known = {name: state[name] for name in names if isinstance(state.get(name), Tensor)}
    _check_views(known, value, source)
    if targets is None:
        _load_own_way(network, {name: value(name) for name in names}, versions, advice)
        return
    for name, target in targets.items():
        why = "" if without_memory(target) else storage_problem(target)
        if why:
            raise ModelError(f"tensor {name!r} of the network {why}")
    check_empty(network, targets, names, value, source)
    by_source: dict[Hashable, list[str]] = {}
    for name in names:
        by_source.setdefault(source(name), []).append(name)
    lazy = frozenset() if store is None else lazy_names(network, targets)
    Filling(network, targets, value, verify, store, lazy).fill(by_source)


def cast_loss(theirs: torch.dtype, ours: torch.dtype, *, trained: bool) -> str:
    """Return why values must not be cast from one dtype to another; "" if they may.

    A cast may lose precision, but nothing else: no imaginary parts, no fractions, and for
    parameters no scales, which integers of a quantized network stand for.

    Args:
        theirs: dtype of the values.
        ours: dtype of the network's tensor.
        trained: whether that is a parameter.
    """
    if theirs.is_complex and not ours.is_complex:
        return "the imaginary parts would be lost"
    mine = ours.is_floating_point or ours.is_complex
    if theirs.is_floating_point and not mine:
        return "the fractions would be lost"
    if trained and mine and not (theirs.is_floating_point or theirs.is_complex):
        return "integers without their scales: dequantize them first"
    return ""


def _is_it(target: Tensor, value: object) -> bool:
    if not isinstance(value, Tensor) or target.shape != value.shape:
        return False
    return is_same(target, value) or extent_of(target) is extent_of(value) is None


def _load_own_way(
    network: nn.Module, values: Mapping[str, Tensor], versions: Mapping[str, Any], advice: str
) -> None:
    state = OrderedDict(values)
    if versions:
        state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    tensors = (*network.parameters(), *network.buffers())
    frozen = any(tensor.is_inference() for tensor in tensors)  # writable only in that mode
    with _restored(network), torch.inference_mode() if frozen else nullcontext():
        try:
            network.load_state_dict(
                state
            )  # strict by default; custom loaders may lack the argument
        except Exception as error:  # the network's own code may raise anything
            raise ModelError(
                f"{type(network).__name__} has its own way of loading a state dict, which failed: "
                f"{type(error).__name__}: {error}{advice}"
            ) from error


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Restore parameters and buffers, including shapes and objects, if the block raises."""
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (table, dict(table))
        for module in network.modules()
        for table in (module._parameters, module._buffers)
        if isinstance(table, dict)  # scripted modules have none
    ]
    tensors = (*network.parameters(), *network.buffers())
    copies = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    except Exception:
        for table, held in tables:
            table.clear()
            table.update(held)
        for tensor, copy in copies:
            if tensor.shape == copy.shape:
                copy_into(tensor, copy)
            else:
                with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
                    tensor.data = copy.clone()  # cloned here, to be of the same mode
        raise


def _check_views(
    tensors: Mapping[str, Tensor], value: Value, source: Callable[[str], Hashable]
) -> None:
    """Check that names sharing memory, and tensors that repeat it, get consistent values."""
    extents = {name: extent_of(tensor) for name, tensor in tensors.items()}
    met = {name: set(others) for name, others in overlaps(tensors).items()}
    for alias, owner in ties(tensors).items():
        if source(alias) != source(owner) or owner in met:
            met.setdefault(alias, set()).add(owner)
            met.setdefault(owner, set()).add(alias)
    while met:
        group, pending = {}, [next(iter(met))]
        while pending:
            name = pending.pop()
            extent = extents[name]
            if name not in group and extent is not None:
                group[name] = extent
                pending += met.pop(name)
        _check_group({name: group[name] for name in tensors if name in group}, tensors, value)


def _check_group(group: Mapping[str, Extent], tensors: Mapping[str, Tensor], value: Value) -> None:
    """Write all values into one buffer in turn, checking that none overwrites another."""
    origin = min(extent.start for extent in group.values())
    end = max(extent.end for extent in group.values())
    unit = math.gcd(*(n for e in group.values() for n in (e.size, e.start - origin)))
    length = (end - origin) // unit
    held = torch.zeros(length, unit, dtype=torch.uint8)
    owner = torch.full((length,), -1, dtype=torch.int32)
    for number, (name, extent) in enumerate(group.items()):
        places = extent.units(origin, unit).reshape(-1)
        given = value(name)
        if given.shape != tensors[name].shape:  # left to the network's own loader
            continue
        values = _bytes_of(given, tensors[name], unit)
        before = owner[places]
        other = (before >= 0) & (held[places] != values).any(1)
        if bool(other.any()):
            theirs = list(group)[int(before[other][0])]
            raise ModelError(
                f"{theirs!r} and {name!r} share memory in the network, but have different values "
                "here. Give one of them memory of its own (clone()), or load values written from "
                "such a network."
            )
        held[places], owner[places] = values, number
        if bool((held[places] != values).any()):
            raise ModelError(
                f"tensor {name!r} is expanded: several places share one value in memory, but the "
                "values here differ. Build the network with separate memory for each."
            )


def _bytes_of(values: Tensor, like: Tensor, unit: int) -> Tensor:
    """Return (runs, unit) bytes of ``values`` as laid out in the memory of ``like``."""
    values = values.detach().cpu().to(like.dtype)
    values = values.conj() if like.is_conj() else values
    values = -values if like.is_neg() else values
    flat = values.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).reshape(-1, unit)
