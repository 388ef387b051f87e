"""The tensors of a network under PWFN: each with its deviations, and all of them in one row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....errors import ConfigError
from ....ops.levels.powers_of_two import LEAST, first_deviations
from ..base import TunedWeight
from .noisy_weights import NoiseSource, Noisy
from .rounds import Fixed

__all__ = ["NoisyTensor", "NoisyTensors"]


@dataclass(eq=False)
class NoisyTensor:
    """One tensor.

    Attributes:
        weight: the tensor.
        noise: its deviations, and which of its weights are fixed.
        values: in the shape of the parameter, what the fixed ones are.
        held: in the same shape, their deviations.
        zeros: share of its weights that were zero at the start.
        mask: of the weight, as it was seen last.
    """

    weight: TunedWeight
    noise: Noisy
    values: Tensor
    held: Tensor
    zeros: float
    mask: Tensor | None = None

    @property
    def grows(self) -> bool:
        """Whether its deviations do: those of weights do, those of biases do not."""
        return self.weight.parameter.dim() > 1

    @property
    def fixed(self) -> Tensor:
        """Which weights are fixed, pruned ones included."""
        fixed = self.noise.fixed
        return torch.zeros_like(self.held, dtype=torch.bool) if fixed is None else fixed

    @torch.no_grad()
    def write_back(self) -> None:
        """Undo what an optimizer did to fixed weights: by decay, momentum or Adam's moments."""
        if self.weight.mask is not self.mask:
            self._prune()
        fixed, parameter, deviation = self.noise.fixed, self.weight.parameter, self.noise.deviation
        deviation.clamp_(min=LEAST)
        if fixed is not None:
            parameter.copy_(torch.where(fixed, self.values.to(parameter.dtype), parameter))
            deviation.copy_(torch.where(fixed, self.held, deviation))

    def _prune(self) -> None:
        """Fix what was pruned since at zero, without noise."""
        self.mask = self.weight.mask
        if self.mask is not None:
            self.noise.fixed = self.fixed | ~self.mask
            self.values = self.values * self.mask
            self.held = self.held * self.mask


@dataclass(frozen=True)
class NoiseSettings:
    """How weights are noisy; the first three as in :class:`fewbits.PWFN`.

    Attributes:
        deviation: "learned", "constant" or "relative".
        spread: of the first deviations.
        largest: deviation.
        samples: whether the forward pass samples.
        kept: whether deviations are kept in the graph, for the growth in the loss.
        source: of random numbers.
    """

    deviation: str
    spread: float
    largest: float
    samples: bool
    kept: bool
    source: NoiseSource


class NoisyTensors:
    """All tensors, in order; a row is all their weights one after another, on the CPU."""

    def __init__(self, weights: Sequence[TunedWeight], settings: NoiseSettings) -> None:
        for weight in weights:
            if weight.levels is not None:
                raise ConfigError(
                    "vector_bits does not go with pwfn: it clusters biases with the weights, and "
                    "leaves normalizations as they are. Leave it out; raw_dtype='float16' stores "
                    "the rest in 16 bits."
                )
        self.tensors = {weight.name: _noisy_tensor(weight, settings) for weight in weights}
        self.relative = settings.spread if settings.deviation == "relative" else None
        for tensor in self:
            tensor.write_back()

    def __iter__(self) -> Iterator[NoisyTensor]:
        return iter(self.tensors.values())

    def parts(self) -> dict[str, slice]:
        """Return where in the row each tensor is."""
        found, start = {}, 0
        for name, tensor in self.tensors.items():
            found[name] = slice(start, start + tensor.held.numel())
            start += tensor.held.numel()
        return found

    def row(self) -> Fixed:
        """Return the weights as they are now."""
        values = _row([tensor.weight.parameter for tensor in self])
        if self.relative is None:
            deviations = _row([tensor.noise.deviation for tensor in self])
        else:
            deviations = np.abs(values) * np.float32(self.relative)
        dead = [
            torch.zeros_like(tensor.fixed) if tensor.weight.mask is None else ~tensor.weight.mask
            for tensor in self
        ]
        return Fixed(values, deviations, _row([tensor.fixed for tensor in self]), _row(dead))

    def take(self, row: Fixed) -> None:
        """Take what a round made of the weights."""
        for name, part in self.parts().items():
            tensor = self.tensors[name]
            fixed = row.fixed[part]
            tensor.noise.fixed = _tensor(fixed, tensor.held)
            tensor.values = _tensor(np.where(fixed, row.values[part], np.float32(0)), tensor.held)
            tensor.held = _tensor(row.deviations[part], tensor.held)
            tensor.write_back()

    @torch.no_grad()
    def grow(self, share: float, largest: float) -> None:
        """Let the deviations of weights go a share of their way to the largest."""
        for tensor in self:
            if tensor.grows:
                deviation = tensor.noise.deviation
                deviation.add_((largest - deviation).relu_().mul_(share))

    def penalty(self, alpha: float, largest: float, mean: float) -> Tensor:
        """Return ``alpha / 2 * sum |noise| relu(largest - deviation)^2`` over free weights.

        ``mean`` stands for the noise where it is not known: replicas of a network keep their own.
        """
        total = torch.zeros((), device=next(iter(self)).held.device)
        for tensor in self:
            if not tensor.grows:
                continue
            gap = (largest - tensor.noise.deviation).relu()
            size = mean if tensor.noise.noise is None else tensor.noise.noise.abs()
            term = gap.square() * size
            if tensor.noise.fixed is not None:
                term = term.masked_fill(tensor.noise.fixed, 0)
            total = total + term.sum()
        return total * (alpha / 2)

    @torch.no_grad()
    def mean_deviation(self) -> float:
        """Return the mean deviation of weights that are free, biases left out; 0 without any."""
        total = count = 0.0
        for tensor in self:
            if tensor.grows:
                free = ~tensor.fixed
                total += float(tensor.noise.deviation.mul(free).sum())
                count += float(free.sum())
        return total / max(1.0, count)

    def versions(self) -> dict[str, int]:
        """Return how often each parameter was written to."""
        return {name: tensor.weight.parameter._version for name, tensor in self.tensors.items()}

    def zeroed(self, share: float) -> list[str]:
        """Return the weights of which more than ``share`` is zero, and was not at the start."""
        return [
            name
            for name, tensor in self.tensors.items()
            if tensor.grows
            and tensor.zeros <= share
            and float((tensor.weight.parameter == 0).float().mean()) > share
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return what is fixed, where, and all deviations."""
        return {
            name: {
                "fixed": tensor.noise.fixed,
                "values": tensor.values,
                "held": tensor.held,
                "deviation": tensor.noise.deviation.detach(),
            }
            for name, tensor in self.tensors.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        for name, tensor in self.tensors.items():
            kept, fixed = state[name], state[name]["fixed"]
            tensor.values, tensor.held = (
                kept["values"].to(tensor.values),
                kept["held"].to(tensor.held),
            )
            tensor.noise.fixed = None if fixed is None else fixed.to(tensor.values.device)
            tensor.mask = tensor.weight.mask
            tensor.noise.deviation.copy_(kept["deviation"])


def _noisy_tensor(weight: TunedWeight, settings: NoiseSettings) -> NoisyTensor:
    values = _row([weight.parameter])
    if settings.deviation == "learned":
        first = first_deviations(values, settings.spread, settings.largest)
    else:
        first = np.full_like(values, settings.spread)
    deviation = _tensor(first, weight.parameter.detach().float())
    noise = Noisy(
        deviation,
        settings.source,
        trained=settings.deviation == "learned",
        sampled=settings.samples,
        kept=settings.kept,
    )
    nothing = torch.zeros_like(deviation)
    return NoisyTensor(weight, noise, nothing, nothing.clone(), float((values == 0).mean()))


def _row(tensors: Sequence[Tensor]) -> NDArray[Any]:
    """Return all values one after another, floats in 32 bits (numpy has no bfloat16)."""
    flat = [tensor.detach().reshape(-1).cpu() for tensor in tensors]
    flat = [values.float() if values.is_floating_point() else values for values in flat]
    return np.concatenate([values.numpy() for values in flat])


def _tensor(values: NDArray[Any], like: Tensor) -> Tensor:
    return torch.from_numpy(values.copy()).reshape(like.shape).to(like.device)
