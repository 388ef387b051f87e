"""Random draws of a forward pass: its own, and the same in every network that makes it.

Networks draw from torch, from NumPy's and Python's process-wide generators, and from generators of
their own, kept in attributes of modules. Where the float and the quantized network drew other
numbers, their activations would differ by more than what quantization does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .copying import attributes

__all__ = ["Draws", "OwnGenerators", "preserved_draws", "uses_cuda"]


@dataclass(frozen=True)
class Draws:
    """State of the process-wide generators: torch (CUDA once something uses it), NumPy, Python."""

    cpu: Tensor
    cuda: tuple[Tensor, ...]
    numpy: Any
    python: Any

    @classmethod
    def read(cls) -> Draws:
        """Return the present state."""
        cuda = torch.cuda.get_rng_state_all() if uses_cuda() else ()
        return cls(torch.get_rng_state(), tuple(cuda), np.random.get_state(), random.getstate())  # noqa: NPY002

    @staticmethod
    def seed(number: int) -> None:
        """Start the draws of a forward pass."""
        torch.default_generator.manual_seed(number)
        if uses_cuda():  # torch.manual_seed would queue a call for a CUDA that is not in use
            torch.cuda.manual_seed_all(number)
        np.random.seed(number % 2**32)  # noqa: NPY002 - the generator that networks share
        random.seed(number)

    def write(self) -> None:
        """Make this the present state."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


@contextmanager
def preserved_draws() -> Iterator[None]:
    """Leave the random draws of the caller as they were."""
    before = Draws.read()
    try:
        yield
    finally:
        before.write()


class OwnGenerators:
    """The generators that modules of a network keep in attributes, as they are now.

    A pass of any copy of the network can begin from there. Generators that nothing reaches from
    the network (globals of its source file) are out of sight.
    """

    def __init__(self, network: nn.Module) -> None:
        self._states = [_access(generator)[0]() for generator in _generators(network)]

    def rewind(self, network: nn.Module) -> None:
        """Put the generators of ``network``, this one or a copy, back to where they were."""
        if self._states:
            for generator, state in zip(_generators(network), self._states, strict=False):
                _access(generator)[1](state)


_Generator = np.random.Generator | np.random.RandomState | random.Random | torch.Generator


def _generators(network: nn.Module) -> list[_Generator]:
    """Return the generators in attributes, each once, in the order of modules."""
    kept = [value for module in network.modules() for _, value in attributes(module)]
    found = {id(leaf): leaf for leaf in tree_leaves(kept) if isinstance(leaf, _Generator)}
    return list(found.values())


def _access(generator: _Generator) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Return what reads and what writes the state of a generator."""
    if isinstance(generator, np.random.Generator):
        bits: Any = generator.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    return generator.get_state, generator.set_state


def uses_cuda() -> bool:
    """Return whether something in the process uses CUDA; asking does not begin to."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call, unused-ignore]
