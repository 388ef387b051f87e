"""Observe the inputs or outputs of modules, call by call, in order of execution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import inf
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...coded import site_name
from ...errors import CalibrationError
from ..network.batches import Forward
from ..network.distributed import ALONE, Ranks
from ..network.isolation import evaluating, isolated_pass
from ..network.shared_memory import copy_into

__all__ = [
    "NORMS",
    "RECTIFIERS",
    "Site",
    "normalized",
    "observe",
    "stateless_pass",
]

_KEPT = 1 << 16  # values kept per site
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
RECTIFIERS = (nn.ReLU, nn.ReLU6)


@dataclass
class Site:
    """The input or output of a module in one of its calls.

    Attributes:
        name: name in a file: that of the module, or ``module@k``.
        module: name of the module.
        call: number of the call in a forward pass.
        order: position in the forward pass.
        rectified: whether the module is a ReLU, so that only values above zero count.
        output: whether it is the output of the module.
        ceiling: upper clip of the module (ReLU6).
        feeds: for a ReLU, the next executed layer with a quantized weight.
        features: number of values per sample.
        low: smallest value seen.
        high: largest value seen.
        parts: evenly spread samples of the values seen, float32.
    """

    name: str
    module: str
    call: int
    order: int
    rectified: bool
    output: bool = False
    ceiling: float = inf
    feeds: str = ""
    features: int = 1
    low: float = 0.0
    high: float = 0.0
    parts: list[Tensor] = field(default_factory=list)

    @property
    def sample(self) -> Tensor:
        """The sampled values."""
        return torch.cat(self.parts) if self.parts else torch.zeros(1)

    @property
    def signed(self) -> bool:
        """Whether negative values matter: beyond rounding noise, and not cut by a ReLU."""
        return not self.rectified and self.low < -1e-6 * max(self.high, -self.low)

    def add(self, seen: _Values) -> None:
        """Record the values of one call."""
        if seen.part is not None:
            self.low, self.high = min(self.low, seen.low), max(self.high, seen.high)
            self.features = seen.features
            self.parts.append(seen.part)


@dataclass(frozen=True)
class _Values:
    """What is kept of the values of one call; ``part`` is None if there are none."""

    name: str
    call: int
    low: float = 0.0
    high: float = 0.0
    features: int = 1
    part: Tensor | None = None

    @classmethod
    def of(cls, name: str, call: int, values: Tensor, ceiling: float, room: int) -> _Values:
        """Keep evenly spread ones, at most about twice ``room``."""
        flat = values.detach().float().reshape(-1).clamp(max=ceiling)
        if not flat.numel():
            return cls(name, call)
        low, high = (float(value) for value in flat.aminmax())
        features = max(1, flat.numel() // max(1, len(values)))
        # An odd stride, so that rows and channels are sampled evenly.
        stride = max(1, flat.numel() // room) | 1
        return cls(name, call, low, high, features, flat[::stride].clone())

    def on_cpu(self) -> _Values:
        """Return the same in main memory."""
        return replace(self, part=None if self.part is None else self.part.cpu())


@dataclass
class _Watch:
    """Hooks that record one forward pass."""

    names: Mapping[nn.Module, str]
    calls: dict[str, int] = field(default_factory=dict)
    seen: list[tuple[str, int, Tensor]] = field(default_factory=list)

    def follow(self, outputs: bool) -> list[RemovableHandle]:
        """Register hooks on the outputs or the inputs of the modules."""
        if outputs:
            return [m.register_forward_hook(self.after) for m in self.names]
        return [m.register_forward_pre_hook(self.before, with_kwargs=True) for m in self.names]

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the input of a module."""
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if given:
            self._note(module, given[0])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Record the output of a module."""
        if isinstance(output, Tensor):
            self._note(module, output)

    def _note(self, module: nn.Module, values: Tensor) -> None:
        name = self.names[module]
        call = self.calls.get(name, 0)
        self.calls[name] = call + 1
        self.seen.append((name, call, values.detach().clone()))


def observe(
    model: nn.Module,
    modules: Iterable[str],
    batches: Sequence[Any],
    forward: Forward,
    *,
    outputs: bool = False,
    ranks: Ranks = ALONE,
) -> list[Site]:
    """Run ``model`` over ``batches`` and return the sites of ``modules`` in order of execution.

    A module that is called equally often in every forward pass has a site per call; any other has
    one site. ``outputs``: observe outputs instead of inputs. ``ranks`` share the batches, and all
    get the same sites.

    Raises:
        CalibrationError: values that are not finite (names the module).
    """
    by_name = dict(model.named_modules(remove_duplicate=False))
    names: dict[nn.Module, str] = {}
    for name in modules:
        names.setdefault(by_name[name], name)
    room = max(256, _KEPT // max(1, len(batches)))
    kept: dict[int, list[_Values]] = {}
    for place in ranks.own(len(batches)):
        watch = _Watch(names)
        handles = watch.follow(outputs)
        try:
            stateless_pass(forward, model, batches[place], place)
        finally:
            for handle in handles:
                handle.remove()
        kept[place] = [
            _kept(by_name, seen, place, room=room, outputs=outputs) for seen in watch.seen
        ]
    if ranks.count > 1:  # what is sent goes through main memory
        kept = {place: [seen.on_cpu() for seen in own] for place, own in kept.items()}
    kept = dict(chain(*(part.items() for part in ranks.exchange("ranges of activations", kept))))
    known: dict[tuple[str, int], Site] = {}
    counts: dict[str, set[int]] = {}
    for place in sorted(kept):
        for order, seen in enumerate(kept[place]):
            if (seen.name, seen.call) not in known:
                module = by_name[seen.name]
                known[seen.name, seen.call] = _site(module, seen.name, seen.call, order, outputs)
            known[seen.name, seen.call].add(seen)
        for name, called in Counter(seen.name for seen in kept[place]).items():
            counts.setdefault(name, set()).add(called)
    return _named(known, counts, by_name)


def _kept(
    modules: Mapping[str, nn.Module],
    seen: tuple[str, int, Tensor],
    place: int,
    *,
    room: int,
    outputs: bool,
) -> _Values:
    """Keep some of the values of a call."""
    name, call, values = seen
    if not bool(torch.isfinite(values).all()):
        raise CalibrationError(
            f"the {'output' if outputs else 'input'} of {name!r} contains NaN or infinite values "
            f"on calibration batch {place}. Check the data and its normalization."
        )
    return _Values.of(name, call, values, _ceiling(modules[name]), room)


def _ceiling(module: nn.Module) -> float:
    return 6.0 if isinstance(module, nn.ReLU6) else inf


def _site(module: nn.Module, name: str, call: int, order: int, output: bool) -> Site:
    rectified = isinstance(module, RECTIFIERS)
    return Site(name, name, call, order, rectified, output, _ceiling(module))


def _named(
    known: dict[tuple[str, int], Site], counts: dict[str, set[int]], modules: Container[str]
) -> list[Site]:
    sites = []
    for (name, call), site in known.items():
        steady = len(counts[name]) == 1
        calls = max(counts[name]) if steady else 1
        site.name = site_name(name, call, calls, output=site.output, modules=modules)
        if steady:
            sites.append(site)
        elif call == 0:
            others = [s for (n, c), s in known.items() if n == name and c]
            for other in others:
                site.parts += other.parts
                site.low, site.high = min(site.low, other.low), max(site.high, other.high)
            sites.append(site)
    return sorted(sites, key=lambda site: site.order)


def normalized(
    model: nn.Module, layers: Iterable[str], batch: Any, forward: Forward
) -> frozenset[str]:
    """Return those of ``layers`` whose output is the direct input of a normalization."""
    made: dict[int, tuple[str, ReferenceType[Tensor]]] = {}
    found: set[str] = set()
    modules = dict(model.named_modules(remove_duplicate=False))
    handles = []
    for name in layers:

        def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor):
                made[id(output)] = (name, ref(output))

        handles.append(modules[name].register_forward_hook(note))

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        known = made.get(id(args[0])) if args else None
        if known is not None and known[1]() is args[0]:
            found.add(known[0])

    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    handles += [module.register_forward_pre_hook(look) for module in norms]
    try:
        stateless_pass(forward, model, batch, 0)
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(found)


@torch.no_grad()
def stateless_pass(forward: Forward, model: nn.Module, batch: Any, seed: int) -> None:
    """Run a pass in evaluation mode that leaves modes, buffers and random state unchanged."""
    buffers = [module._buffers for module in model.modules()]
    tables = [(table, dict(table)) for table in buffers if isinstance(table, dict)]  # not scripts
    state = [(value, value.clone()) for value in model.buffers()]
    try:
        with evaluating(model):
            isolated_pass(forward, model, batch, seed)
    finally:
        for table, own in tables:
            table.update(own)
        for value, before in state:
            if value.shape == before.shape:
                copy_into(value, before)
            else:
                value.data = before
