"""What the loop needs of a tuner, and nothing more: anything with these verbs can be trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = ["Tunable"]


@runtime_checkable
class Tunable(Protocol):
    """A network being tuned in place; :func:`fewbits.prepare` makes one.

    Attributes:
        model: the person's network, whose state-dict keys are those of the float network.
    """

    model: nn.Module

    def penalty(self) -> Tensor:
        """Return what is added to the loss, a scalar."""
        ...

    def step(self) -> None:
        """Act on the weights after ``optimizer.step()``, the gradients being still there."""
        ...

    def advance(self, progress: float) -> None:
        """Take note of the share of the training that is done, in [0, 1]."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the learnables that the method has of its own."""
        ...

    def measures(self) -> Mapping[str, float]:
        """Return figures for logs, such as ``bits_per_weight``."""
        ...

    def quantized(self) -> AbstractContextManager[Any]:
        """Return a block inside of which the weights are what the file would hold."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the network's own tensors, as plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Take back what :meth:`state_dict` returned."""
        ...
