"""Discovery: a first pass that finds the order of layers, their calls, and the bytes it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..network.batches import Call
from ..network.isolation import plain_tensors
from ..network.shared_memory import StorageWeakRef, storage_of

__all__ = ["Discovery", "LiveBytes", "discover", "plain_bytes"]


@dataclass(frozen=True)
class Discovery:
    """The order in which to quantize, from passes through the unquantized network.

    Attributes:
        order: modules reached, ordered by their last call in a pass.
        calls: number of calls of each module in the first pass that reached it.
        itineraries: by batch, the number of calls of each module in the whole pass.
        live_bytes: most bytes that a pass held when it entered one of the modules.
    """

    order: tuple[str, ...]
    calls: Mapping[str, int]
    itineraries: dict[int, Mapping[str, int]]
    live_bytes: int


def discover(
    run: Callable[[int, LiveBytes], Mapping[str, int]],
    targets: int,
    batches: int,
    network: nn.Module,
) -> Discovery:
    """Run whole passes until every target has been seen; usually one is enough.

    ``run(batch, meter)`` returns the calls by module, in order of the last call. If the first batch
    does not reach all targets, each further pass uses the next batch. A module that only a later
    batch reaches is inserted after the one that precedes it there.
    """
    order: list[str] = []
    calls: dict[str, int] = {}
    itineraries: dict[int, Mapping[str, int]] = {}
    meter = LiveBytes(network)
    for batch in range(batches):
        itinerary = run(batch, meter)
        itineraries[batch] = itinerary
        _merge(order, list(itinerary))
        calls = {**itinerary, **calls}
        if len(order) == targets:
            break
    return Discovery(tuple(order), calls, itineraries, meter.most)


def _merge(order: list[str], trail: list[str]) -> None:
    place = 0
    for name in trail:
        if name in order:
            place = order.index(name) + 1
        else:
            order.insert(place, name)
            place += 1


class LiveBytes(TorchFunctionMode):
    """Counts the bytes that a forward pass holds: live results of torch functions.

    Sees all tensors that Python code in the thread gets, on any device, through weak references to
    their storage. What ``network`` held before (parameters, buffers, tables) is not counted. This
    is what a suspended pass holds: working memory inside operators is already freed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.most = 0
        kept = (*network.parameters(), *network.buffers(), *plain_tensors(network))
        self._known = {ref for tensor in kept if (ref := storage_of(tensor)) is not None}
        self._made: dict[StorageWeakRef, int] = {}
        self._paused = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function and record its result."""
        result = func(*args, **(kwargs or {}))
        if not self._paused:
            self._note(result)
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing created in this block: it belongs to the observer, not to the pass."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def sample(self, call: Call) -> None:
        """Measure at a call, whose inputs are alive wherever they were created."""
        self._note((call.args, dict(call.kwargs)))
        gone = [ref for ref in self._made if ref.expired()]  # type: ignore[no-untyped-call, unused-ignore]
        for ref in gone:
            del self._made[ref]
        self.most = max(self.most, sum(self._made.values()))

    def _note(self, value: Any) -> None:
        for leaf in tree_leaves(value):
            ref = storage_of(leaf) if isinstance(leaf, torch.Tensor) else None
            if ref is not None and ref not in self._known:
                self._made[ref] = leaf.untyped_storage().nbytes()


def plain_bytes(network: nn.Module) -> int:
    """Return the bytes that another module tree of ``network`` takes for its plain tensors."""
    sizes = {
        ref: tensor.untyped_storage().nbytes()
        for tensor in plain_tensors(network)
        if (ref := storage_of(tensor)) is not None
    }
    return sum(sizes.values())
