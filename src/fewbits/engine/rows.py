"""The inputs of a layer as rows: what each neuron is multiplied with, gathered only where asked.

A convolution has one row per output position. Its rows are never all written out: a strided view
of the padded input is indexed at the positions that were drawn (Lybrand and Saab 2021 and
Zhang, Zhou and Saab 2023 call them patches; here at the layer's true stride, without replacement).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Rows",
    "conv_rows",
    "conv_transpose_rows",
    "draw_rows",
    "feature_rows",
    "stacked_rows",
]


@dataclass(frozen=True)
class Rows:
    """Rows of one call of a layer.

    Attributes:
        count: rows in all.
        take: picks, int64 (r,), or None for all, to rows (groups, r, columns).
    """

    count: int
    take: Callable[[Tensor | None], Tensor]


def draw_rows(count: int, quota: int, seed: int) -> Tensor | None:
    """Draw ``quota`` of ``count`` rows without replacement, ascending; None means all of them."""
    if count <= quota:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:quota].sort().values


def feature_rows(x: Tensor) -> Rows:
    """Return the rows of a linear map: ``x`` (..., features), any number of leading axes."""
    flat = x.reshape(-1, x.shape[-1])

    def take(picks: Tensor | None) -> Tensor:
        return (flat if picks is None else flat[picks.to(flat.device)]).unsqueeze(0)

    return Rows(len(flat), take)


def stacked_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several maps side by side, one group each, as many as the shortest has."""
    count = min(part.count for part in parts)

    def take(picks: Tensor | None) -> Tensor:
        chosen = torch.arange(count) if picks is None else picks
        return torch.cat([part.take(chosen) for part in parts])

    return Rows(count, take)


def conv_rows(x: Tensor, module: nn.Module) -> Rows:
    """Return the patches of a Conv1d, Conv2d or Conv3d: (groups, r, channels / groups * kernel).

    ``x`` is (batch, channels, *space) or (channels, *space). Padding in every mode, "same",
    stride, dilation and groups are the layer's own.
    """
    kernel = _sizes(module, "kernel_size")
    x = x.unsqueeze(0) if x.dim() == len(kernel) + 1 else x
    padding: list[int] = list(getattr(module, "_reversed_padding_repeated_twice"))  # noqa: B009
    mode = str(module.padding_mode)
    x = F.pad(x, padding, mode="constant" if mode == "zeros" else mode)
    strides, dilation = _sizes(module, "stride"), _sizes(module, "dilation")
    return _window_rows(_windows(x, kernel, strides, dilation), _groups(module))


def conv_transpose_rows(x: Tensor, module: nn.Module) -> Rows:
    """Return the patches of a ConvTranspose1d, 2d or 3d, columns in the order of its weight.

    Output positions of a transposed convolution see the input spread by the stride, padded by
    ``dilation * (kernel - 1) - padding``, through the kernel mirrored; mirroring the patches
    instead leaves the weight as it is stored.
    """
    kernel = _sizes(module, "kernel_size")
    strides, dilation = _sizes(module, "stride"), _sizes(module, "dilation")
    x = x.unsqueeze(0) if x.dim() == len(kernel) + 1 else x
    extents = [(size - 1) * s + 1 for size, s in zip(x.shape[2:], strides, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *extents)
    every = tuple(slice(None, None, s) for s in strides)
    spread[(slice(None), slice(None), *every)] = x
    padding: list[int] = []
    outer = zip(_sizes(module, "padding"), _sizes(module, "output_padding"), strict=True)
    for k, d, (p, extra) in zip(kernel, dilation, outer, strict=True):
        margin = d * (k - 1) - p
        padding = [margin, margin + extra, *padding]
    windows = _windows(F.pad(spread, padding), kernel, (1,) * len(kernel), dilation)
    mirrored = windows.flip(tuple(range(-len(kernel), 0)))
    return _window_rows(mirrored, _groups(module))


def _windows(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return a view (batch, channels, *positions, *kernel) of padded ``x``."""
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilation, strict=True), start=2):
        extent = d * (k - 1) + 1
        if x.shape[axis] < extent:  # the layer itself will say so; no rows until then
            return x.new_zeros(0, x.shape[1], *([1] * len(kernel)), *kernel)
        x = x.unfold(axis, extent, s)[..., ::d]
    return x


def _window_rows(windows: Tensor, groups: int) -> Rows:
    dims = (windows.dim() - 2) // 2
    channels, kernel = windows.shape[1], windows.shape[2 + dims :]
    positions = (windows.shape[0], *windows.shape[2 : 2 + dims])
    columns = channels // groups * prod(kernel)
    by_position = windows.movedim(1, 1 + dims)

    def take(picks: Tensor | None) -> Tensor:
        chosen = torch.arange(prod(positions)) if picks is None else picks
        where = torch.unravel_index(chosen.to(windows.device), positions)
        return by_position[where].reshape(len(chosen), groups, columns).transpose(0, 1)

    return Rows(prod(positions), take)


def _sizes(module: nn.Module, name: str) -> tuple[int, ...]:
    return tuple(int(size) for size in getattr(module, name))


def _groups(module: nn.Module) -> int:
    return int(getattr(module, "groups"))  # noqa: B009
