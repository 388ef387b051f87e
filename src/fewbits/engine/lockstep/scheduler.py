"""The scheduler of suspended forward passes: moves every batch to a layer, then to the next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ...errors import CalibrationError
from ...progress import Progress, ProgressEvent
from ..graph.data_dependence import Choices
from ..network.batches import Call, Forward, describe
from ..network.distributed import ALONE, Ranks
from ..network.isolation import CallerState, OwnGenerators, cloned, plain_tensors, replica
from ..network.shared_memory import StorageWeakRef, storage_of
from .forward_task import PassTask, stuck_message
from .pairing import alike, sampled, unified

__all__ = [
    "Comparing",
    "Discovery",
    "Expecting",
    "LiveBytes",
    "LockstepReport",
    "Observer",
    "Schedule",
    "Stream",
    "discover",
    "plain_bytes",
]


_MOST_THREADS = 2048  # operating system threads; each task has its own team of torch threads


class Observer(Protocol):
    """Observes the inputs of a layer, then quantizes it; may also be :class:`Expecting`."""

    def observe(self, module: str, batch: int, call: int, reference: Call, quantized: Call) -> None:
        """Observe a call of ``module``; ordered by batch, then by call. Copy tensors to keep them.

        ``quantized`` is the same object as ``reference`` if all their tensors are equal; otherwise
        each equal argument is the same object, and ``reference.chosen`` tells whether rows may
        have moved.
        """

    def complete(self, module: str) -> None:
        """Quantize ``module``: change its weights in the quantized network in place."""


@runtime_checkable
class Expecting(Protocol):
    """An observer that needs to know in advance how often it will be called."""

    def expect(self, calls: Mapping[str, int]) -> None:
        """Get the largest number of calls of each module per batch, before the first call."""


@runtime_checkable
class Comparing(Protocol):
    """An observer that wants to know where the two networks cannot be compared."""

    def unrepeatable(self, module: str) -> None:
        """Note that passes of the reference network differ; called before ``complete``."""


@dataclass(frozen=True)
class LockstepReport:
    """Summary of a run.

    Attributes:
        order: completed modules, in order.
        calls: number of observed calls of each, over all batches.
        unreached: targets without an observed call; they were not completed.
        live_batches: most batches in flight at once where the passes hold most.
        reruns: forward passes beyond one per batch and network (and beyond the discovery).
        pair_bytes: most bytes held by the suspended passes of one batch, as far as Python sees,
            including the copies of plain tensors (tables, caches) in its module trees.
        unmatched: calls of the reference network that the quantized one did not make; dropped.
    """

    order: tuple[str, ...]
    calls: Mapping[str, int]
    unreached: tuple[str, ...]
    live_batches: int
    reruns: int
    pair_bytes: int = 0
    unmatched: int = 0


class Stream:
    """One of the two networks, and the module trees over its weights that passes can use."""

    def __init__(self, name: str, network: nn.Module) -> None:
        self.name = name
        self.network = network
        self.trees = [network]
        self.generators = OwnGenerators(network)

    def provide(self, trees: int) -> bool:
        """Create module trees for that many passes at once; False if copying is impossible."""
        while len(self.trees) < trees:
            twin = replica(self.network)
            if twin is None:
                return False
            self.trees.append(twin)
        return True


@dataclass
class _Pair:
    """The passes of one batch by stream, and the module trees they use."""

    batch: int
    trees: Mapping[str, nn.Module]
    tasks: dict[str, PassTask] = field(default_factory=dict)


class Schedule:
    """One run: the first stream leads, the last is being quantized (they may be the same).

    Each of several ranks runs the passes of its own batches, and all complete the same modules.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        batches: Sequence[Any],
        forward: Forward,
        observer: Observer,
        ranks: Ranks = ALONE,
    ) -> None:
        self._streams = streams
        self._batches = batches
        self._ranks = ranks
        self._own = ranks.own(len(batches))
        self._forward = forward
        self._observer = observer
        self._state = CallerState.read()
        self._alive: set[PassTask] = set()
        self._kept: list[_Pair] = []
        self._completed: set[str] = set()
        self._expected: Mapping[str, int] = {}
        self._itineraries: dict[int, Mapping[str, int]] = {}
        self._observed: dict[str, int] = {}
        self._begun: set[tuple[int, str]] = set()
        self._reruns = 0
        self._unmatched = 0
        self._seen: dict[str, list[Tensor]] = {}
        self._unrepeatable: set[str] = set()
        self._watched = len(streams) > 1  # rows are compared only then
        self._choices: dict[nn.Module, Choices] = {}

    def run(
        self,
        targets: Sequence[str],
        max_live_bytes: int,
        progress: Progress,
        finished: Collection[str] = (),
    ) -> LockstepReport:
        """Observe and complete every target that some batch reaches and that is not finished."""
        self._completed = set(finished)
        progress(ProgressEvent("quantize", len(finished), len(targets)))
        lead = self._streams[0]
        copies = sum(plain_bytes(stream.network) for stream in self._streams)
        found = discover(self._survey, len(targets), len(self._batches), lead.network, self._ranks)
        self._expected = found.calls
        if isinstance(self._observer, Expecting):
            self._observer.expect(found.calls)
        if lead is not self._streams[-1]:  # paths of a network that changes are unknown
            self._itineraries.update(found.itineraries)
        pair_bytes = {m: found.live_bytes[m] * len(self._streams) + copies for m in found.order}
        rooms = self._rooms(pair_bytes, max_live_bytes)
        for module in found.order:
            if module in finished:
                continue
            self._turn(module, rooms[module])
            if self._is_observed(module):
                if module in self._unrepeatable and isinstance(self._observer, Comparing):
                    self._observer.unrepeatable(module)
                self._observer.complete(module)
                self._completed.add(module)
                torch.clear_autocast_cache()  # may hold a half-precision copy of the old weight
                progress(ProgressEvent("quantize", len(self._completed), len(targets), module))
        order = tuple(module for module in found.order if module in self._completed)
        missed = tuple(module for module in targets if module not in self._completed)
        live = min(rooms.values(), default=len(self._own))
        counts = self._ranks.exchange("layers done", (live, self._reruns, self._unmatched))
        live, reruns, unmatched = (sum(column) for column in zip(*counts, strict=True))
        most = max(pair_bytes.values(), default=copies)
        return LockstepReport(order, self._observed, missed, live, reruns, most, unmatched)

    def _is_observed(self, module: str) -> bool:
        """Tell the other ranks what was observed of a module; return whether it is anything."""
        here = (self._observed.get(module, 0), module in self._unrepeatable)
        told = self._ranks.exchange(f"layer {module}", here)
        self._observed[module] = sum(calls for calls, _ in told)
        if not self._observed[module]:
            del self._observed[module]
        if any(differs for _, differs in told):
            self._unrepeatable.add(module)
        return module in self._observed

    def close(self) -> list[str]:
        """Unwind all suspended passes; return the titles of those that do not stop."""
        self._kept.clear()
        stuck = [task.title for task in self._alive if not task.cancel()]
        self._alive.clear()
        for stream in self._streams:
            stream.generators.rewind(stream.network)
        return stuck

    def _survey(self, batch: int, meter: LiveBytes) -> Mapping[str, int]:
        if self._watched:
            try:
                return self._surveyed(batch, meter)
            except CalibrationError:  # perhaps caused by watching it
                self._watched = False
        return self._surveyed(batch, meter)

    def _surveyed(self, batch: int, meter: LiveBytes) -> Mapping[str, int]:
        lead = self._streams[0]

        def body() -> None:
            with meter:
                self._pass(lead, lead.network, batch)

        def probe(module: str, call: Call) -> None:
            meter.sample(module, call)
            first = batch == self._own.start
            if first and lead is not self._streams[-1] and module not in self._seen:
                with meter.paused():
                    self._seen[module] = sampled(call)

        task = self._task(batch, lead, body, probe)
        task.run_to(None)
        self._alive.discard(task)
        return task.counts

    def _rooms(self, pair_bytes: Mapping[str, int], max_live_bytes: int) -> dict[str, int]:
        """Return how many pairs may be alive while each module is observed.

        Pairs wait there, or at the module before it. Creates the module trees that they need.
        """
        by_threads = _MOST_THREADS // (len(self._streams) * (1 + torch.get_num_threads()))
        most = max(1, min(len(self._own), by_threads))
        rooms, before = {}, 1
        for module, size in pair_bytes.items():
            rooms[module] = max(1, min(most, max_live_bytes // max(size, before)))
            before = max(1, size)
        trees = max(rooms.values(), default=1)
        provided = all(stream.provide(trees) for stream in self._streams)
        return rooms if provided else dict.fromkeys(rooms, 1)

    def _pair(self, batch: int, place: int) -> _Pair:
        return _Pair(batch, {stream.name: stream.trees[place] for stream in self._streams})

    def _turn(self, module: str, room: int) -> None:
        """Show a module's inputs for all batches; keep the passes of as many as there is room."""
        kept = len(self._own) if room >= len(self._own) else room - 1
        for pair in self._kept[kept:]:
            for task in pair.tasks.values():
                self._drop(task)
        self._kept = self._kept[:kept]
        self._kept += [self._pair(self._own[k], k) for k in range(len(self._kept), kept)]
        for pair in self._kept:
            self._visit(pair, module)
        for batch in self._own[len(self._kept) :]:
            pair = self._pair(batch, len(self._kept))
            self._visit(pair, module)
            for task in pair.tasks.values():
                self._drop(task)

    def _visit(self, pair: _Pair, module: str) -> None:
        """Run the passes of one batch side by side up to the last call of ``module``."""
        lead, last = self._streams[0], self._streams[-1]
        calls = self._expected[module]
        if pair.batch in self._itineraries:
            calls = min(calls, self._itineraries[pair.batch].get(module, 0))
        for call in range(calls):
            first = self._ready(pair, lead, module, call)
            reference = first.run_to(module)
            if reference is None:
                if lead is not last:
                    self._itineraries[pair.batch] = first.counts
                return
            quantized: Call | None = reference
            if lead is not last:
                quantized = self._ready(pair, last, module, call).run_to(module)
            if quantized is None:
                self._unmatched += 1
                continue
            self._check_repeated(module, reference)
            shared = unified(reference, quantized)
            if module in self._unrepeatable:
                reference = shared
            elif shared is not reference:
                reference = replace(reference, chosen=self._chosen(pair.trees[lead.name]))
            self._observer.observe(module, pair.batch, call, reference, shared)
            self._observed[module] = self._observed.get(module, 0) + 1
            del reference, quantized, shared  # before the passes continue and allocate more

    def _check_repeated(self, module: str, call: Call) -> None:
        """Compare the first call of a module with that of the discovery, for the same batch."""
        before = self._seen.pop(module, None)
        if before is not None and not alike(before, sampled(call)):
            self._unrepeatable.add(module)

    def _ready(self, pair: _Pair, stream: Stream, module: str, call: int) -> PassTask:
        """Return the pass of one batch, restarted if it is beyond the call to be observed."""
        task = pair.tasks.get(stream.name)
        if task is not None:
            stale = stream is self._streams[-1] and bool(task.passed & self._completed)
            if call or not (task.ended or stale or module in task.counts):
                return task
            self._drop(task)
        tree, batch = pair.trees[stream.name], pair.batch

        def body() -> None:
            self._pass(stream, tree, batch)

        self._reruns += (batch, stream.name) in self._begun
        self._begun.add((batch, stream.name))
        pair.tasks[stream.name] = self._task(batch, stream, body)
        return pair.tasks[stream.name]

    def _pass(self, stream: Stream, tree: nn.Module, batch: int) -> None:
        stream.generators.rewind(tree)
        with self._watching(tree) if stream is self._streams[0] else nullcontext():
            self._forward(tree, cloned(self._batches[batch]))

    def _watching(self, tree: nn.Module) -> AbstractContextManager[object]:
        """Return a context that watches a pass of the float network for value dependence."""
        if not self._watched:
            return nullcontext()
        if tree not in self._choices:  # before its first pass, whose results are not constant
            self._choices[tree] = Choices(tree)
        return self._choices[tree]

    def _chosen(self, tree: nn.Module) -> str:
        """Return what depended on values in the current pass of the float network."""
        return self._choices[tree].cause if self._watched else "a pass that cannot be watched"

    def _task(
        self,
        batch: int,
        stream: Stream,
        body: Callable[[], None],
        probe: Callable[[str, Call], None] | None = None,
    ) -> PassTask:
        title = (
            f"calibration batch {batch} ({describe(self._batches[batch])}) "
            f"in the {stream.name} network"
        )
        task = PassTask(
            title, body, seed=batch, completed=self._completed, state=self._state, probe=probe
        )
        self._alive.add(task)
        return task

    def _drop(self, task: PassTask) -> None:
        self._alive.discard(task)
        if not task.cancel():
            raise CalibrationError(stuck_message([task.title]))


@dataclass(frozen=True)
class Discovery:
    """The order in which to quantize, from passes through the unquantized network.

    Attributes:
        order: modules reached, ordered by their last call in a pass.
        calls: number of calls of each module in the first pass that reached it.
        itineraries: by batch, the number of calls of each module in the whole pass.
        live_bytes: most bytes that a pass held when it entered each of the modules.
    """

    order: tuple[str, ...]
    calls: Mapping[str, int]
    itineraries: dict[int, Mapping[str, int]]
    live_bytes: Mapping[str, int]


def discover(
    run: Callable[[int, LiveBytes], Mapping[str, int]],
    targets: int,
    batches: int,
    network: nn.Module,
    ranks: Ranks = ALONE,
) -> Discovery:
    """Run whole passes until every target has been seen; usually one is enough.

    ``run(batch, meter)`` returns the calls by module, in order of the last call. If the first batch
    does not reach all targets, each further pass uses the next batch. A module that only a later
    batch reaches is inserted after the one that precedes it there. Ranks look at one batch each.
    """
    order: list[str] = []
    calls: dict[str, int] = {}
    itineraries: dict[int, Mapping[str, int]] = {}
    live: dict[str, int] = {}
    meter = LiveBytes(network)
    for batch in range(ranks.rank, batches + ranks.rank, ranks.count):
        itinerary = dict(run(batch, meter)) if batch < batches else {}
        told = ranks.exchange("order of layers", (itinerary, meter.most))
        for place, (other, most) in enumerate(told, batch - ranks.rank):
            live |= {name: max(size, live.get(name, 0)) for name, size in most.items()}
            if len(order) == targets or place >= batches:
                continue
            itineraries[place] = other
            _merge(order, list(other))
            calls = {**other, **calls}
        if len(order) == targets:
            break
    return Discovery(tuple(order), calls, itineraries, live)


def _merge(order: list[str], trail: list[str]) -> None:
    place = 0
    for name in trail:
        if name in order:
            place = order.index(name) + 1
        else:
            order.insert(place, name)
            place += 1


class LiveBytes(TorchFunctionMode):
    """Counts the bytes that a forward pass holds at each module: results of torch functions.

    Sees all tensors that Python code in the thread gets, on any device, through weak references to
    their storage. What ``network`` held before (parameters, buffers, tables) is not counted. This
    is what a suspended pass holds: working memory inside operators is already freed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.most: dict[str, int] = {}
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

    def sample(self, module: str, call: Call) -> None:
        """Measure at a call of a module, whose inputs are alive wherever they were created."""
        self._note((call.args, dict(call.kwargs)))
        gone = [ref for ref in self._made if ref.expired()]  # type: ignore[no-untyped-call, unused-ignore]
        for ref in gone:
            del self._made[ref]
        self.most[module] = max(self.most.get(module, 0), sum(self._made.values()))

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
