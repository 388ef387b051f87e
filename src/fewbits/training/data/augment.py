"""Random flips and shifts of image batches.

Random numbers are drawn separately from their use: processes that share a batch draw for all of it
and apply their part, so the augmentation of a sample does not depend on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import CalibrationError, require

__all__ = ["Augmentation", "FlipAndCrop"]


class Augmentation(Protocol):
    """Random changes of training inputs."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random numbers ``(count, ...)`` on the CPU, one row per sample."""
        ...

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Return augmented inputs; ``draws`` has one row for each."""
        ...


@dataclass(frozen=True, kw_only=True)
class FlipAndCrop:
    """Mirror half of the images left to right, and shift each by up to ``padding`` pixels.

    Attributes:
        flip: whether to mirror; not suitable for digits and letters.
        padding: pixels added on every side before a window of the original size is cut out; None
            for an eighth of the shorter side, 0 for no shift.
        mode: how to pad: "constant" (zeros, the mean of normalized pixels), "replicate" (repeat
            the edge) or "reflect".
    """

    flip: bool = True
    padding: int | None = None
    mode: str = "constant"

    def __post_init__(self) -> None:
        whole = self.padding is None or (isinstance(self.padding, int) and self.padding >= 0)
        require(whole, "padding", "an integer >= 0, or None", self.padding)
        known = ("constant", "replicate", "reflect")
        require(self.mode in known, "mode", f"one of {', '.join(known)}", self.mode)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return ``(count, 3)`` float32 in [0, 1): shift down, shift right, mirror."""
        return torch.rand(count, 3, generator=generator)

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Return images of the same shape ``(n, channels, height, width)``.

        Raises:
            CalibrationError: ``inputs`` is not a batch of images.
        """
        if inputs.dim() != 4:
            raise CalibrationError(
                "augmentation takes images (n, channels, height, width). Got inputs of shape "
                f"{tuple(inputs.shape)}. Leave augment out, or augment in your own loader."
            )
        height, width = inputs.shape[-2:]
        padding = min(height, width) // 8 if self.padding is None else self.padding
        draws = draws.to(inputs.device)
        down, right = (draws[:, :2] * (2 * padding + 1)).long().unbind(1)
        rows = down[:, None] + torch.arange(height, device=inputs.device)
        columns = torch.arange(width, device=inputs.device).expand(len(inputs), -1)
        if self.flip:
            columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
        columns = columns + right[:, None]
        padded = F.pad(inputs, (padding,) * 4, mode=self.mode) if padding else inputs
        sample = torch.arange(len(inputs), device=inputs.device)[:, None, None]
        # Indexing on both sides of the channels moves them last: (n, height, width, channels).
        cut = padded[sample, :, rows[:, :, None], columns[:, None, :]]
        return cut.permute(0, 3, 1, 2).contiguous()
