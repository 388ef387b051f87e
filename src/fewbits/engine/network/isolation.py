"""Isolate the randomness and state of forward passes, so that all networks draw the same numbers.

Networks draw from torch, from the process-wide generators of NumPy and Python, and from generators
in attributes of modules. If the float and the quantized network drew different numbers, their
activations would differ by more than the effect of quantization.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .batches import Forward
from .copying import attributes, deepcopied

__all__ = [
    "CallerState",
    "Draws",
    "OwnGenerators",
    "autocast_off",
    "cloned",
    "evaluating",
    "fast_path_off",
    "isolated_pass",
    "plain_tensors",
    "preserved_draws",
    "replica",
    "uses_cuda",
]
_Generator = np.random.Generator | np.random.RandomState | random.Random | torch.Generator
_DEVICES = ("cpu", "cuda")  # devices whose autocast state matters


@dataclass(frozen=True)
class Draws:
    """State of the process-wide generators: torch (CUDA if in use), NumPy, Python."""

    cpu: Tensor
    cuda: tuple[Tensor, ...]
    numpy: Any
    python: Any

    @classmethod
    def read(cls) -> Draws:
        """Return the current state."""
        cuda = torch.cuda.get_rng_state_all() if uses_cuda() else ()
        return cls(torch.get_rng_state(), tuple(cuda), np.random.get_state(), random.getstate())  # noqa: NPY002

    @staticmethod
    def seed(number: int) -> None:
        """Seed the draws of a forward pass."""
        torch.default_generator.manual_seed(number)
        if uses_cuda():  # torch.manual_seed would queue a call for a CUDA that is not in use
            torch.cuda.manual_seed_all(number)
        np.random.seed(number % 2**32)  # noqa: NPY002 - the generator that networks use
        random.seed(number)

    def write(self) -> None:
        """Make this the current state."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


@contextmanager
def preserved_draws() -> Iterator[None]:
    """Restore the caller's random state after the block."""
    before = Draws.read()
    try:
        yield
    finally:
        before.write()


class OwnGenerators:
    """The current states of generators kept in attributes of a network's modules.

    A pass of any copy of the network can start from them. Generators that cannot be reached from
    the network (globals of its source file) are not seen.
    """

    def __init__(self, network: nn.Module) -> None:
        self._states = [_access(generator)[0]() for generator in _generators(network)]

    def rewind(self, network: nn.Module) -> None:
        """Reset the generators of ``network``, this one or a copy, to the recorded states."""
        if self._states:
            for generator, state in zip(_generators(network), self._states, strict=False):
                _access(generator)[1](state)


def _generators(network: nn.Module) -> list[_Generator]:
    """Return the generators in attributes, each once, in the order of modules."""
    kept = [value for module in network.modules() for _, value in attributes(module)]
    unique = {id(leaf): leaf for leaf in tree_leaves(kept) if isinstance(leaf, _Generator)}
    return list(unique.values())


def _access(generator: _Generator) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Return functions that read and write the state of a generator."""
    if isinstance(generator, np.random.Generator):
        bits: Any = generator.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    return generator.get_state, generator.set_state


def uses_cuda() -> bool:
    """Return whether the process uses CUDA, without initializing it."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call, unused-ignore]


@dataclass(frozen=True)
class CallerState:
    """The per-thread part of torch's state, for use in new threads.

    Attributes:
        autocast: (device type, dtype) of every enabled autocast.
        device: the default device if it is not the CPU.
        stream: the current CUDA stream, and with it the current GPU, if CUDA is in use.
    """

    autocast: tuple[tuple[str, torch.dtype], ...]
    device: torch.device | None
    stream: torch.cuda.Stream | None

    @classmethod
    def read(cls) -> CallerState:
        """Return the state of the current thread."""
        kinds = [kind for kind in _DEVICES if torch.is_autocast_enabled(kind)]
        device = torch.get_default_device()
        return cls(
            tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds),
            None if device.type == "cpu" else device,
            torch.cuda.current_stream() if uses_cuda() else None,
        )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Apply this state to the current thread, without gradients."""
        torch.get_num_threads()  # makes set_num_threads apply here: OpenMP's count is per thread
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
    """Return ``batch`` with every tensor in tuples, lists and mappings cloned; use under no_grad.

    A tensor in two places stays one tensor. Objects of other kinds are passed on unchanged.
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
    """Run one forward pass on a copy of ``batch`` with its own seed, preserving the caller's state.

    Generators kept by the network are reset afterwards.
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
    """Use evaluation mode inside the block; restore the mode of every module afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def autocast_off() -> Iterator[None]:
    """Disable autocast: methods and moments need float32, not 16 bits."""
    with ExitStack() as stack:
        for kind in _DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class _FastPath:
    """The process-wide switch of fused attention, and its value before the first user."""

    lock = threading.Lock()
    users = 0
    before = True


@contextmanager
def fast_path_off() -> Iterator[None]:
    """Make attention and encoder layers call their submodules, which fused kernels do not.

    The switch is process-wide: it is restored when the last of concurrent users has left.
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

    Attributes that a forward pass writes are separate; weights are shared. Tensors that are neither
    parameters nor buffers (tables, caches) are copied, since a pass may write to them;
    :func:`plain_tensors` lists them. None if the network cannot be copied this way (a scripted
    module). Cost: about 25 us per module, and those copies.
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
    except Exception:  # the user's modules may raise anything; do without a replica
        return None
    return twin if _weights(twin) == _weights(network) else None


def plain_tensors(network: nn.Module) -> list[Tensor]:
    """Return the tensors in attributes of modules that are neither parameters nor buffers."""
    beside = [value for module in network.modules() for _, value in attributes(module)]
    kept = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    return [x for x in tree_leaves(beside) if isinstance(x, Tensor) and id(x) not in kept]


def _is_shared(attribute: str) -> bool:
    return "hook" in attribute or attribute in ("_parameters", "_buffers")


def _weights(network: nn.Module) -> list[tuple[str, int]]:
    named = (*network.named_parameters(), *network.named_buffers())
    return [(name, id(tensor)) for name, tensor in named]
