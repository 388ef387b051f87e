"""Put values into the tensors of a network: into their memory, into new memory, or lazily.

A tensor on the meta device has no memory: it is replaced by a new tensor on the CPU, under all of
its names. Every failure leaves the network as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..paged.lazy_weights import LazyWeight, lazy_parameter
from ..paged.weight_store import WeightSpec, WeightStore
from .shared_memory import copy_into, overlaps, same_values, ties

__all__ = ["SMALL_BYTES", "Filling", "as_spec", "check_empty", "lazy_names", "without_memory"]

STAGED_BYTES = 1 << 30  # decoded values that wait until all are decoded; beyond, decoded twice
SMALL_BYTES = 1 << 16  # weights up to this size are never lazy
_LISTED = 5

Value = Callable[[str], Tensor]


def without_memory(tensor: Tensor) -> bool:
    """Return whether a tensor gets new memory when it is filled: it is on meta, or lazy."""
    return tensor.is_meta or isinstance(tensor, LazyWeight)


@dataclass(frozen=True)
class Filling:
    """Fills tensors of a network.

    Attributes:
        network: the network.
        targets: its tensors by name; several names may have one tensor.
        value: returns new values by name, in new memory.
        verify: makes sure that ``value`` cannot fail; None if it never does.
        store: decodes the weights in ``lazy``; None if there are none.
        lazy: names of the weights that become lazy.
    """

    network: nn.Module
    targets: Mapping[str, Tensor]
    value: Value
    verify: Callable[[], None] | None = None
    store: WeightStore | None = None
    lazy: frozenset[str] = frozenset()

    def fill(self, by_source: Mapping[Hashable, Sequence[str]]) -> None:
        """Fill the tensors named in ``by_source``; names of one source get the same values.

        Values for existing memory are decoded first and copied when all are there, as long as they
        take at most 1 GiB; otherwise all are verified first.
        """
        names = [name for places in by_source.values() for name in places]
        kept = {id(self.targets[n]): self.targets[n] for n in names if self._is_kept(n)}
        staged = self.verify is not None
        if self.verify and sum(_nbytes(tensor) for tensor in kept.values()) > STAGED_BYTES:
            self.verify()
            staged = False
        made: dict[int, Tensor] = {}
        for source, places in by_source.items():
            self._make(source, places, made, staged)
        replaced = {name: made[id(self.targets[name])] for name in names if not self._is_kept(name)}
        if self.store is not None:
            lazy = [(source, name) for source, places in by_source.items() for name in places]
            self.store.expect(
                as_spec(str(source), self.targets[name])
                for source, name in lazy
                if name in self.lazy
            )
        with torch.inference_mode(False):
            _install(self.network, replaced)
        if staged:
            for key, tensor in kept.items():
                copy_into(tensor, made.pop(key))

    def _is_kept(self, name: str) -> bool:
        return name not in self.lazy and not without_memory(self.targets[name])

    def _make(
        self, source: Hashable, places: Sequence[str], made: dict[int, Tensor], staged: bool
    ) -> None:
        """Make the new tensors of one source, by the identity of the old ones."""
        values: Tensor | None = None
        for place in places:
            target = self.targets[place]
            if id(target) in made:
                continue
            if place in self.lazy and self.store is not None:
                made[id(target)] = lazy_parameter(self.store, as_spec(str(source), target))
                continue
            fresh = values is None
            values = self.value(place) if values is None else values
            if without_memory(target):
                new = as_spec(str(source), target).convert(values)
                new = new.clone() if new is values and not fresh else new
                made[id(target)] = _replacement(target, new)
            elif staged:
                made[id(target)] = values.to(target.dtype)
            else:
                copy_into(target, values)


def as_spec(name: str, target: Tensor) -> WeightSpec:
    """Describe a tensor of a network as a weight with values of the file's tensor ``name``."""
    device = torch.device("cpu") if target.is_meta else target.device
    return WeightSpec(name, tuple(target.shape), target.stride(), target.dtype, device)


def check_empty(
    network: nn.Module,
    targets: Mapping[str, Tensor],
    names: Iterable[str],
    value: Value,
    source: Callable[[str], Hashable],
) -> None:
    """Check that everything on meta gets values, and each tensor there the same under all names.

    Raises:
        ModelError: a tensor on meta is not among ``names``; tensors share memory on meta without
            being one; or names of one tensor have different values.
    """
    given: dict[int, list[str]] = {}
    for name in names:
        if without_memory(targets[name]):
            given.setdefault(id(targets[name]), []).append(name)
    left = [name for name, tensor in _all_tensors(network) if tensor.is_meta]
    left = [name for name in left if name not in targets or id(targets[name]) not in given]
    if left:
        more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
        raise ModelError(
            f"{len(left)} tensors of the network are on the meta device and not in the file, which "
            f"holds parameters and persistent buffers: {', '.join(left[:_LISTED])}{more}. Build "
            "the network so that only its parameters are on meta, or compute these tensors on a "
            "real device first (docs/loading.md)."
        )
    storages: dict[int, str] = {}
    for places in given.values():
        target = targets[places[0]]
        if target.is_meta:
            other = storages.setdefault(target.untyped_storage()._cdata, places[0])
            if other != places[0]:
                raise ModelError(
                    f"{other!r} and {places[0]!r} are different tensors that share memory on meta, "
                    "which new memory would part. Make them one parameter, or build the network on "
                    "a real device."
                )
        for place in places[1:]:
            alike = source(place) == source(places[0])
            if not alike and not _equal(value(places[0]), value(place), target.dtype):
                raise ModelError(
                    f"{places[0]!r} and {place!r} are one tensor in the network, but have "
                    "different values here. Build the network with a tensor for each."
                )


def lazy_names(network: nn.Module, targets: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the weights that may be lazy: large plain parameters with memory of their own."""
    known = dict(_all_tensors(network))
    shared = set(overlaps(known))
    for alias, name in ties(known).items():
        if alias not in targets or name not in targets:
            shared |= {alias, name}
    fixed = {id(known[name]) for name in shared}
    return frozenset(
        name
        for name, tensor in targets.items()
        if isinstance(tensor, nn.Parameter)
        and (type(tensor) is nn.Parameter or isinstance(tensor, LazyWeight))
        and _nbytes(tensor) > SMALL_BYTES
        and id(tensor) not in fixed
    )


def _all_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters, buffers, and tensors that are plain attributes of modules, by name."""
    found: list[tuple[str, Tensor]] = list(network.named_parameters(remove_duplicate=False))
    found += network.named_buffers(remove_duplicate=False)
    for path, module in network.named_modules():
        plain = [(key, value) for key, value in vars(module).items() if isinstance(value, Tensor)]
        found += [(f"{path}.{key}" if path else key, value) for key, value in plain]
    return found


def _equal(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    return a.shape == b.shape and same_values(a.to(dtype), b.to(dtype))


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _replacement(target: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` as what ``target`` is: a parameter with its attributes, or a buffer."""
    if isinstance(target, LazyWeight):
        return nn.Parameter(values, requires_grad=False)
    if isinstance(target, nn.Parameter):
        made = Tensor._make_subclass(type(target), values, target.requires_grad)
        vars(made).update(vars(target))
        return made
    return values.requires_grad_(target.requires_grad)


def _install(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace tensors of a network; modules that watch their attributes, such as LSTMs, notice."""
    done: list[tuple[nn.Module, str, Tensor]] = []
    try:
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            owner = network.get_submodule(path)
            old = getattr(owner, leaf)
            setattr(owner, leaf, tensor)
            done.append((owner, leaf, old))
    except BaseException:
        for owner, leaf, old in done:
            setattr(owner, leaf, old)
        raise
