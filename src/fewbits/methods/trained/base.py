"""The interface between a training method and the training loop: sessions and their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...coded import ActivationGrid
from ...engine.layers.layer import Quantized
from ...engine.layers.views import WeightView

__all__ = ["InputSession", "Session", "Switchable", "TunedWeight"]


@dataclass(eq=False)
class TunedWeight:
    """One weight in training.

    Attributes:
        name: name in the state dict.
        parameter: the parameter that the optimizer updates.
        view: its view as a matrix.
        mask: in the shape of the parameter, False for pruned weights, which stay zero; None if
            nothing is pruned. The tuner may replace it during training.
        start: its codes in the compressed network that training starts from; None for a float
            start.
        levels: number of levels of a vector, which has its own grid; None for a weight, whose
            levels follow from the method's settings.
        end: whether it is the first or the last weight matrix of a network with more than two.
        paths: whether the columns of its codes, seen as (rows, columns), are paths of a trellis.
        bypasses: whether its layer, a recurrent one, does not call parametrizations.
    """

    name: str
    parameter: nn.Parameter
    view: WeightView
    mask: Tensor | None = None
    start: Quantized | None = None
    levels: int | None = None
    end: bool = False
    paths: bool = False
    bypasses: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter."""
        return tuple(self.parameter.shape)

    def matrix(self) -> Tensor:
        """Return the values as (groups, neurons, columns) float32, without gradient."""
        return self.view.matrix(self.parameter.detach()).float()

    def gradient(self) -> Tensor | None:
        """Return the gradient of the loss as a matrix; None if no backward pass reached it."""
        grad = self.parameter.grad
        return None if grad is None else self.view.matrix(grad).float()

    def alive(self) -> Tensor | None:
        """Return the mask as a matrix; None if nothing is pruned."""
        return None if self.mask is None else self.view.matrix(self.mask)

    @torch.no_grad()
    def write(self, matrix: Tensor) -> None:
        """Write values (groups, neurons, columns) to the parameter, with zeros where pruned."""
        values = self.view.tensor(matrix, self.shape).to(self.parameter)
        if self.mask is not None:
            values = values * self.mask
        self.parameter.copy_(values)


@runtime_checkable
class Session(Protocol):
    """The state of a method during the training of one network; :class:`Tuner` calls it.

    In each iteration: forward passes through :meth:`parametrization`, :meth:`penalty`, the backward
    pass, the optimizer's step, then :meth:`before_step` and :meth:`step`. Gradients are still
    available, unscaled and equal on all ranks.
    """

    def penalty(self) -> Tensor:
        """Return the term to add to the loss: a scalar, zero if the method acts in :meth:`step`."""
        ...

    def before_step(self) -> None:
        """Read the gradients that the optimizer used."""
        ...

    def step(self) -> None:
        """Modify the weights after the optimizer's step."""
        ...

    def advance(self, progress: float) -> None:
        """Update schedules to ``progress``, the finished share of the training."""
        ...

    def parametrization(self, weight: TunedWeight) -> nn.Module | None:
        """Return the module that maps the parameter to the weight of the forward pass, or None."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters to train in addition to those of the network."""
        ...

    def cell(self, weight: TunedWeight) -> float:
        """Return the mean distance between neighbouring levels of a weight, in its own unit."""
        ...

    def quantized(self, weight: TunedWeight) -> Quantized:
        """Return the weight quantized as it is now."""
        ...

    def measures(self) -> Mapping[str, float]:
        """Return metrics for a log; must be cheap."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs: tensors and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`."""
        ...


@runtime_checkable
class InputSession(Session, Protocol):
    """A session that also quantizes the inputs of layers, and trains in stages.

    Attributes:
        stage: number of the current stage. A new stage needs a fresh optimizer state.
        inputs: the quantizer of each input, by site.
        stages: all stages, each with ``until``, the share of the training at which it ends.
        selectable_from: share of the training from which the network has its final widths.
    """

    stage: int
    stages: Sequence[Any]
    inputs: Mapping[str, Any]

    @property
    def selectable_from(self) -> float:
        """Share of the training from which an epoch may be chosen as the result."""
        ...

    def attach(
        self,
        model: nn.Module,
        layers: Mapping[str, Sequence[str]],
        batches: Sequence[Any],
        forward: Any,
        ends: Sequence[str],
    ) -> None:
        """Start to quantize the inputs of ``layers``, which maps weight names to their modules.

        ``ends``: the first and last weight matrix of the network; empty if it has only two.
        """
        ...

    def detach(self, model: nn.Module) -> Mapping[str, ActivationGrid]:
        """Stop quantizing inputs, and return their grids for the file."""
        ...


@runtime_checkable
class Switchable(Protocol):
    """A parametrization that can be switched off: while ``active`` is False it does nothing."""

    active: bool
