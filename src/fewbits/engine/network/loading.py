"""Values into a network, all or none: in its own way where it has one, in every view alike."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from .shared_memory import Extent, extent_of, hindrance, is_same, overlaps, put, ties

__all__ = ["load_values", "plain_targets", "unsuited"]

Value = Callable[[str], Tensor]


def plain_targets(network: nn.Module) -> dict[str, Tensor] | None:
    """Return the tensors that loading fills, or None where the network loads in its own way."""
    for module in network.modules():
        hooks = module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks
        own = type(module)._load_from_state_dict.__module__.startswith("torch.nn.modules.")
        if hooks or not own or type(module).load_state_dict is not nn.Module.load_state_dict:
            return None
    targets: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    targets |= dict(network.named_buffers(remove_duplicate=False))
    values = network.state_dict()
    plain = all(name in targets and _is_it(targets[name], value) for name, value in values.items())
    return {name: targets[name] for name in values} if plain else None


def load_values(
    network: nn.Module,
    names: Iterable[str],
    value: Value,
    source: Callable[[str], Hashable],
    *,
    targets: Mapping[str, Tensor] | None,
    versions: Mapping[str, Any],
) -> None:
    """Fill ``network`` with values of its tensors.

    Args:
        network: what is filled.
        names: of the tensors, as the network has them.
        value: gives the values of one, in its shape; asked again for names whose memory is shared.
        source: tells which tensor's values these are: names of one source come one after another.
        targets: of :func:`plain_targets`; None lets the network load in its own way, all values
            held at once.
        versions: of the formats of layers in these values, by module, as ``state_dict()`` tells
            them; for a network that converts older ones.

    Raises:
        ModelError: values that differ for one memory, or that the network refuses. It is unchanged.
    """
    names = list(names)
    state = network.state_dict() if targets is None else targets
    known = {name: state[name] for name in names if isinstance(state.get(name), Tensor)}
    _check_views(known, value, source)
    if targets is None:
        _load_own_way(network, {name: value(name) for name in names}, versions)
        return
    for name, target in targets.items():
        why = hindrance(target)
        if why:
            raise ModelError(f"tensor {name!r} of the network {why}")
    by_source: dict[Hashable, list[str]] = {}
    for name in names:
        by_source.setdefault(source(name), []).append(name)
    for places in by_source.values():
        values = value(places[0])
        for place in places:
            put(targets[place], values)


def unsuited(theirs: torch.dtype, ours: torch.dtype, *, trained: bool) -> str:
    """Return why values of one dtype may not become those of another by a cast; "" where they may.

    A cast may lose precision, and no more: not imaginary parts, nor fractions, nor, of a parameter,
    the scales that integers of a quantized network stand for.

    Args:
        theirs: the dtype of the values.
        ours: the dtype of the network's tensor.
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
    network: nn.Module, values: Mapping[str, Tensor], versions: Mapping[str, Any]
) -> None:
    state = OrderedDict(values)
    if versions:
        state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    tensors = (*network.parameters(), *network.buffers())
    frozen = any(tensor.is_inference() for tensor in tensors)  # written to in that mode alone
    with _restored(network), torch.inference_mode() if frozen else nullcontext():
        try:
            network.load_state_dict(state)  # strictly; a loader of its own may not take that word
        except Exception as error:  # code of the network's own may raise anything
            raise ModelError(
                f"{type(network).__name__} has a way of its own to load a state dict, and it "
                f"failed: {type(error).__name__}: {error}"
            ) from error


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Put parameters and buffers back, shapes and objects included, where the body raises."""
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (table, dict(table))
        for module in network.modules()
        for table in (module._parameters, module._buffers)
        if isinstance(table, dict)  # not of scripts
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
                put(tensor, copy)
            else:
                with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
                    tensor.data = copy.clone()  # there, of that mode too
        raise


def _check_views(
    tensors: Mapping[str, Tensor], value: Value, source: Callable[[str], Hashable]
) -> None:
    """Refuse values that differ for one memory: of two names, or of a tensor that repeats it."""
    extents = {name: extent_of(tensor) for name, tensor in tensors.items()}
    met = {name: set(others) for name, others in overlaps(tensors).items()}
    for alias, owner in ties(tensors).items():
        if source(alias) != source(owner) or owner in met:
            met.setdefault(alias, set()).add(owner)
            met.setdefault(owner, set()).add(alias)
    while met:
        group, open_ = {}, [next(iter(met))]
        while open_:
            name = open_.pop()
            extent = extents[name]
            if name not in group and extent is not None:
                group[name] = extent
                open_ += met.pop(name)
        _check_group({name: group[name] for name in tensors if name in group}, tensors, value)


def _check_group(group: Mapping[str, Extent], tensors: Mapping[str, Tensor], value: Value) -> None:
    """Write all values into one buffer in turn, and look whether one changes another."""
    origin = min(extent.start for extent in group.values())
    end = max(extent.end for extent in group.values())
    unit = math.gcd(*(n for e in group.values() for n in (e.size, e.start - origin)))
    length = (end - origin) // unit
    held = torch.zeros(length, unit, dtype=torch.uint8)
    owner = torch.full((length,), -1, dtype=torch.int32)
    for number, (name, extent) in enumerate(group.items()):
        places = extent.units(origin, unit).reshape(-1)
        given = value(name)
        if given.shape != tensors[name].shape:  # the network's own loader decides on that
            continue
        values = _bytes_of(given, tensors[name], unit)
        before = owner[places]
        other = (before >= 0) & (held[places] != values).any(1)
        if bool(other.any()):
            theirs = list(group)[int(before[other][0])]
            raise ModelError(
                f"{theirs!r} and {name!r} share memory in the network, and have different values "
                "here. Give one of them memory of its own, a clone(), or load what was written "
                "from such a network."
            )
        held[places], owner[places] = values, number
        if bool((held[places] != values).any()):
            raise ModelError(
                f"1 tensors that hold no values of their own: {name} (expanded: one value in "
                "memory for several places, and the values here differ). Build the network with "
                "memory for each."
            )


def _bytes_of(values: Tensor, like: Tensor, unit: int) -> Tensor:
    """Return (runs, unit) bytes of ``values`` as they are in the memory of ``like``."""
    values = values.detach().cpu().to(like.dtype)
    values = values.conj() if like.is_conj() else values
    values = -values if like.is_neg() else values
    flat = values.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).reshape(-1, unit)
