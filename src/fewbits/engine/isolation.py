"""What keeps suspended forward passes apart: state of the thread, random draws, batch, attributes.

Passes that take turns must not see each other. Each has the caller's thread state, its own random
draws, its own copy of the batch (a network may write into its input), and its own copy of the
module tree (a network may stash activations on ``self``) over the same weights.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .batches import Forward
from .copying import attributes, deepcopied
from .draws import Draws, OwnGenerators, preserved_draws, uses_cuda

__all__ = [
    "CallerState",
    "autocast_off",
    "cloned",
    "evaluating",
    "fast_path_off",
    "isolated_pass",
    "plain_tensors",
    "replica",
]

_DEVICES = ("cpu", "cuda")  # whose autocast is looked at


@dataclass(frozen=True)
class CallerState:
    """The part of torch's state that belongs to a thread, so that new threads can take it over.

    Attributes:
        autocast: (device type, dtype) of every autocast that is on.
        device: the default device where it is not the CPU.
        stream: the current CUDA stream, and with it the current GPU, once CUDA is in use.
    """

    autocast: tuple[tuple[str, torch.dtype], ...]
    device: torch.device | None
    stream: torch.cuda.Stream | None

    @classmethod
    def read(cls) -> CallerState:
        """Return the state of the present thread."""
        kinds = [kind for kind in _DEVICES if torch.is_autocast_enabled(kind)]
        device = torch.get_default_device()
        return cls(
            tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds),
            None if device.type == "cpu" else device,
            torch.cuda.current_stream() if uses_cuda() else None,
        )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Take over this state in the present thread, without gradients."""
        torch.get_num_threads()  # makes set_num_threads hold here: OpenMP's count is per thread
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for kind, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            if self.device is not None:
                stack.enter_context(self.device)
            if self.stream is not None:
                stack.enter_context(torch.cuda.stream(self.stream))
            yield


def cloned(batch: Any, memo: dict[int, Tensor] | None = None) -> Any:
    """Return ``batch`` with every tensor in tuples, lists and mappings copied, for no_grad.

    One tensor in two places stays one tensor. Objects of other kinds are handed on as they are.
    """
    memo = {} if memo is None else memo
    if isinstance(batch, Tensor):
        return memo.setdefault(id(batch), batch.clone())
    if isinstance(batch, tuple):
        parts = [cloned(part, memo) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    if isinstance(batch, list):
        return [cloned(part, memo) for part in batch]
    if isinstance(batch, MutableMapping):
        twin = copy.copy(batch)
        for key in list(twin):
            twin[key] = cloned(batch[key], memo)
        return twin
    return batch


def isolated_pass(forward: Forward, network: nn.Module, batch: Any, seed: int) -> Any:
    """Run one forward pass on a copy of ``batch``, with its own draws; the caller's stay as is.

    Generators that the network keeps are back where they were afterwards.
    """
    generators = OwnGenerators(network)
    try:
        with preserved_draws():
            Draws.seed(seed)
            return forward(network, cloned(batch))
    finally:
        generators.rewind(network)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Be in evaluation mode inside; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def autocast_off() -> Iterator[None]:
    """Compute in the dtypes that are there: methods and moments are for float32, not for 16 bit."""
    with ExitStack() as stack:
        for kind in _DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class _FastPath:
    """The process-wide switch of fused attention, as left by whoever came first."""

    lock = threading.Lock()
    users = 0
    before = True


@contextmanager
def fast_path_off() -> Iterator[None]:
    """Make attention and encoder layers call their submodules, fused kernels do not.

    The switch is one for the process: it is put back when the last of concurrent users has gone.
    """
    with _FastPath.lock:
        if _FastPath.users == 0:
            _FastPath.before = torch.backends.mha.get_fastpath_enabled()
        _FastPath.users += 1
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _FastPath.lock:
            _FastPath.users -= 1
            if _FastPath.users == 0:
                torch.backends.mha.set_fastpath_enabled(_FastPath.before)


def replica(network: nn.Module) -> nn.Module | None:
    """Return a second module tree over the same parameters, buffers and hooks.

    Attributes that a forward pass writes belong to one tree; a weight changed in one is changed in
    both. Tensors that are neither parameter nor buffer (tables, caches) are copied, as a pass may
    write into them; :func:`plain_tensors` says which. None where the network does not let itself
    be copied that way (a scripted module). Cost: about 25 us a module, and those copies.
    """
    memo: dict[int, Any] = {}
    for module in network.modules():
        for name, value in vars(module).items():
            if _is_shared(name):
                memo[id(value)] = value
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                memo[id(tensor)] = tensor
    try:
        twin = deepcopied(network, memo)
    except Exception:  # whatever a foreign module raises, the caller goes on without a replica
        return None
    return twin if _weights(twin) == _weights(network) else None


def plain_tensors(network: nn.Module) -> list[Tensor]:
    """Return the tensors in attributes of modules that are neither parameter nor buffer."""
    beside = [value for module in network.modules() for _, value in attributes(module)]
    kept = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    return [x for x in tree_leaves(beside) if isinstance(x, Tensor) and id(x) not in kept]


def _is_shared(attribute: str) -> bool:
    return "hook" in attribute or attribute in ("_parameters", "_buffers")


def _weights(network: nn.Module) -> list[tuple[str, int]]:
    named = (*network.named_parameters(), *network.named_buffers())
    return [(name, id(tensor)) for name, tensor in named]
