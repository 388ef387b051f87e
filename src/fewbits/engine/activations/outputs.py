"""Outputs that no quantized layer reads, so that a sum or shortcut continues in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor, nn

from ..network.batches import Forward
from .observer import NORMS, stateless_pass

__all__ = ["unquantized_outputs"]

_KEPT = 4096  # values compared per tensor


@dataclass
class _Seen:
    """Record of one forward pass: inputs of layers, outputs of layers and normalizations."""

    inputs: list[Tensor] = field(default_factory=list)
    given: dict[str, list[Tensor]] = field(default_factory=dict)
    made: dict[int, tuple[str, ReferenceType[Tensor]]] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    last: str = ""

    def enter(self, name: str, values: Tensor, *, norm: bool) -> None:
        """Record the input of a layer, or of a normalization that may end a layer."""
        if not norm:
            self.inputs.append(_few(values))
        elif (known := self.made.get(id(values))) is not None and known[1]() is values:
            self.ends[known[0]] = name

    def leave(self, name: str, values: Tensor, *, norm: bool) -> None:
        """Record the output of a module."""
        if not norm:
            self.made[id(values)] = (name, ref(values))  # weakly: a whole pass may not fit memory
            self.ends[name], self.last = name, name
        self.given.setdefault(name, []).append(_few(values))

    def unread(self) -> list[str]:
        """Return the modules whose output no layer reads, either directly or rectified."""
        ends = {layer: end for layer, end in self.ends.items() if layer != self.last}
        return [end for end in ends.values() if not any(map(self._read, self.given[end]))]

    def _read(self, given: Tensor) -> bool:
        above = given.clamp_min(0)
        return any(
            seen.shape == given.shape
            and (bool((seen == given).all()) or bool((seen == above).all()))
            for seen in self.inputs
        )


def _few(values: Tensor) -> Tensor:
    """Return a sample of the values, in order."""
    flat = values.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _KEPT) | 1].clone()


def unquantized_outputs(
    model: nn.Module, layers: Sequence[str], batch: Any, forward: Forward
) -> list[str]:
    """Return the modules at which one of ``layers`` ends in float, in order of execution.

    A layer ends at the normalization that reads it, or at itself. Left out are outputs that,
    directly or rectified, are the input of one of ``layers`` (which has its own grid), and the last
    layer. Found by comparing the values of one forward pass.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    norms = {name for name, module in model.named_modules() if isinstance(module, NORMS)}
    seen, handles = _Seen(), []
    for name in (*dict.fromkeys(layers), *norms):
        norm = name in norms

        def before(module: nn.Module, args: Any, name: str = name, norm: bool = norm) -> None:
            if args and isinstance(args[0], Tensor):
                seen.enter(name, args[0], norm=norm)

        def after(
            module: nn.Module, args: Any, output: Any, name: str = name, norm: bool = norm
        ) -> None:
            if isinstance(output, Tensor):
                seen.leave(name, output, norm=norm)

        handles.append(modules[name].register_forward_pre_hook(before))
        handles.append(modules[name].register_forward_hook(after))
    try:
        stateless_pass(forward, model, batch, 0)
    finally:
        for handle in handles:
            handle.remove()
    return seen.unread()
