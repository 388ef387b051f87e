"""A method at work in a training: its session, and the weights in it."""

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
        name: state-dict name.
        parameter: the live parameter, which the optimizer steps.
        view: how it is a matrix.
        mask: in the shape of the parameter, False for weights that are pruned and stay zero; None
            where there are none. The tuner may replace it while training.
        start: its codes in the compressed network that training starts from; None from floats.
        levels: how many a vector gets, on a grid of its own; None for a weight, which gets what the
            method's settings say.
        end: the first or the last weight matrix of a network that has more than two.
    """

    name: str
    parameter: nn.Parameter
    view: WeightView
    mask: Tensor | None = None
    start: Quantized | None = None
    levels: int | None = None
    end: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's."""
        return tuple(self.parameter.shape)

    def matrix(self) -> Tensor:
        """Return the values as (groups, neurons, columns) float32, without gradient."""
        return self.view.matrix(self.parameter.detach()).float()

    def gradient(self) -> Tensor | None:
        """Return the task's gradient as the matrix is; None where no backward pass reached it."""
        grad = self.parameter.grad
        return None if grad is None else self.view.matrix(grad).float()

    def alive(self) -> Tensor | None:
        """Return the mask as the matrix is; None where nothing is pruned."""
        return None if self.mask is None else self.view.matrix(self.mask)

    @torch.no_grad()
    def write(self, matrix: Tensor) -> None:
        """Put values (groups, neurons, columns) into the parameter, zero where it is pruned."""
        values = self.view.tensor(matrix, self.shape).to(self.parameter)
        if self.mask is not None:
            values = values * self.mask
        self.parameter.copy_(values)


@runtime_checkable
class Session(Protocol):
    """A method at work on one network, along with a training loop. :class:`Tuner` calls it.

    In an iteration: forward passes through :meth:`parametrization`, :meth:`penalty`, the backward
    pass, the optimizer's step, then :meth:`before_step` and :meth:`step`. Gradients are still
    there, unscaled and equal on all ranks.
    """

    def penalty(self) -> Tensor:
        """Return what to add to the task's loss: a scalar, zero where the method acts in step."""
        ...

    def before_step(self) -> None:
        """Look at the gradients that the optimizer stepped by."""
        ...

    def step(self) -> None:
        """Act on the weights after the optimizer did."""
        ...

    def advance(self, progress: float) -> None:
        """Follow the schedules: ``progress`` is the share of the training that is done."""
        ...

    def parametrization(self, weight: TunedWeight) -> nn.Module | None:
        """Return what maps the parameter to what the forward pass sees; None for no change."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return what the optimizer must train besides the network's own parameters."""
        ...

    def cell(self, weight: TunedWeight) -> float:
        """Return the mean distance of neighbouring levels of a weight, in its own unit."""
        ...

    def quantized(self, weight: TunedWeight) -> Quantized:
        """Return what a file would hold of the weight now."""
        ...

    def measures(self) -> Mapping[str, float]:
        """Return figures for a log; cheap."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs: tensors and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        ...


@runtime_checkable
class InputSession(Session, Protocol):
    """A session that quantizes inputs of layers too, and goes through stages.

    Attributes:
        stage: number of the present stage; a new one wants a fresh optimizer state.
        inputs: by site, what quantizes it.
        stages: how many there are, each with ``until``, the share of the training at its end.
        selectable_from: share of the training from which the network is what it will be in the end.
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
        """Quantize inputs of ``layers``, by weight name those that have it, from now on.

        ``ends``: a network's first and last weight matrix; empty where there are but two.
        """
        ...

    def detach(self, model: nn.Module) -> Mapping[str, ActivationGrid]:
        """End that, and return the grids that the file gets."""
        ...


@runtime_checkable
class Switchable(Protocol):
    """A parametrization that can be passed by: while ``active`` is False it changes nothing."""

    active: bool
