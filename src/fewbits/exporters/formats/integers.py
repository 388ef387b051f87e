"""Uniform grids as plain integers and steps, and values in 16 bits where there are none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...coded import AffineTensor, CodebookTensor, CodedTensor, GridTensor, RawTensor
from ...engine.layers.pack import to_torch

__all__ = [
    "HALF",
    "Integers",
    "change",
    "dense",
    "integers_of",
    "rounded",
    "without_integers",
]

HALF = (torch.float16, torch.bfloat16)

_EXACT = 1 << 22  # twice as much is exact in float32, and leaves room in int32


@dataclass(frozen=True, eq=False)
class Integers:
    """A matrix ``step * index``: each product, rounded once to float32, is the weight.

    Attributes:
        index: int32 (neurons, inputs).
        step: float32 (neurons, groups); a neuron's inputs are divided into groups of equal length.
    """

    index: NDArray[np.int32]
    step: NDArray[np.float32]

    @property
    def group(self) -> int:
        """Inputs that share a step."""
        return int(self.index.shape[1] // max(1, self.step.shape[1]))

    @property
    def bits(self) -> int:
        """The width of the narrowest two's complement that holds every integer."""
        if not self.index.size:
            return 1
        low, high = int(self.index.min()), int(self.index.max())
        return 1 + max((-low - 1).bit_length() if low < 0 else 0, max(0, high).bit_length())

    def divided(self, group: int) -> Integers | None:
        """Return the same with steps for each ``group`` inputs; None if it does not divide."""
        if self.group % group:
            return None
        return Integers(self.index, np.repeat(self.step, self.group // group, axis=1))

    def rows(self, order: NDArray[np.intp]) -> Integers:
        """Return the same with the neurons in another order."""
        return Integers(self.index[order], self.step[order])


def integers_of(tensor: GridTensor) -> Integers | None:
    """Return the integers of a grid that is its matrix, reshaped; None if they are too large.

    A grid without a zero becomes odd integers at half its step, exactly.
    """
    neurons = tensor.shape[0]
    size = max(int(np.abs(part).max(initial=0)) for part in (tensor.index, tensor.offset))
    whole = tensor.step.size == 1
    if size >= _EXACT or not neurons or (len(tensor.index) % neurons and not whole):
        return None
    index, step = tensor.index, tensor.step
    if tensor.offset.any():
        twice = (2 * tensor.offset).astype(np.int32)[:, None]
        odd = bool((twice % 2).any())
        index = 2 * index - twice if odd else index - twice // 2
        step = step / np.float32(2 if odd else 1)
    steps = np.repeat(step, neurons)[:, None] if whole else step.reshape(neurons, -1)
    return Integers(index.reshape(neurons, -1), steps)


def without_integers(tensor: CodedTensor) -> str:
    """Return why a quantized tensor has no matrix of integers; "" where it has one."""
    if isinstance(tensor, CodebookTensor):
        return "it is on a codebook"
    if isinstance(tensor, AffineTensor):
        return "its grid begins anywhere"
    if not isinstance(tensor, GridTensor):
        return "it is in a basis"
    return "its rows are not its first axis" if tensor.layout is not None else ""


def dense(tensor: CodedTensor) -> Tensor:
    """Return values: in 16 bits if the tensor is quantized, else in its own dtype.

    Of 16 bits, its own dtype if it has as many; else float16, or bfloat16 for values beyond.
    """
    values = to_torch(tensor)
    if isinstance(tensor, RawTensor) or values.dtype in HALF:
        return values
    half = values.half()
    return half if bool(half.isfinite().all()) else values.bfloat16()


def change(step: NDArray[np.float32], made: Tensor) -> float:
    """Return the largest relative change of steps by rounding them."""
    used = step != 0
    return float(np.abs(made.float().numpy()[used] / step[used] - 1).max(initial=0))


def rounded(step: NDArray[np.float32], dtype: torch.dtype) -> Tensor | None:
    """Return steps in a dtype; None if one of them is then infinite, or zero though it was not."""
    made = torch.from_numpy(np.array(step)).to(dtype)
    back = made.float().numpy()
    return made if bool((np.isfinite(back) & ((back != 0) | (step == 0))).all()) else None
