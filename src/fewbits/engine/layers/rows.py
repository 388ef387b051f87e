"""Inputs of a layer as rows, the vectors that each neuron is multiplied with, gathered on demand.

A convolution has one row per output position. The rows are never all materialized: a strided view
of the padded input is indexed at the positions drawn (Lybrand and Saab 2021 and Zhang, Zhou and
Saab 2023 call them patches; here with the layer's true stride, and without replacement).
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
    "without_padding",
]


@dataclass(frozen=True)
class Rows:
    """Rows of one call of a layer.

    Attributes:
        count: number of rows.
        take: function of indices, int64 (r,), or None for all, that returns these rows (groups, r,
            columns).
        points: the input positions that rows are cut from, (1, r, channels) each, if these are
            fewer numbers than the rows; None if rows are the layer's inputs themselves.
        samples: number of samples if the rows of each follow each other and ``block`` returns them;
            0 if that is not known.
        block: function of a range of samples that returns their rows, (samples, groups, columns,
            rows of a sample), contiguous and much faster than ``take``.
        places: the axes that the rows are counted along, such as (samples, tokens); () if they
            are not known.
    """

    count: int
    take: Callable[[Tensor | None], Tensor]
    points: Rows | None = None
    samples: int = 0
    block: Callable[[int, int], Tensor] | None = None
    places: tuple[int, ...] = ()

    def by_sample(self, samples: int, start: int, stop: int) -> Tensor:
        """Return the rows of samples ``start`` to ``stop`` of as many as there are.

        The result is (stop - start, groups, columns, rows of a sample).
        """
        if self.block is not None and self.samples == samples:
            return self.block(start, stop)
        places = self.count // samples
        rows = self.take(torch.arange(start * places, stop * places))
        return rows.reshape(len(rows), stop - start, places, -1).permute(1, 0, 3, 2)


def draw_rows(count: int, quota: int, seed: int) -> Tensor | None:
    """Draw ``quota`` of ``count`` rows without replacement, ascending; None means all rows."""
    if count <= quota:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:quota].sort().values


def feature_rows(x: Tensor) -> Rows:
    """Return the rows of a linear map; ``x`` is (..., features) with any leading axes."""
    flat = x.reshape(-1, x.shape[-1])

    def take(picks: Tensor | None) -> Tensor:
        return (flat if picks is None else flat[picks.to(flat.device)]).unsqueeze(0)

    return Rows(len(flat), take, places=tuple(x.shape[:-1]))


def stacked_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several maps as groups, limited to the number of the shortest."""
    count = min(part.count for part in parts)

    def take(picks: Tensor | None) -> Tensor:
        chosen = torch.arange(count) if picks is None else picks
        return torch.cat([part.take(chosen) for part in parts])

    same = all(part.places == parts[0].places for part in parts)
    return Rows(count, take, places=parts[0].places if same else ())


def without_padding(rows: Rows, masks: Sequence[Tensor]) -> Rows:
    """Return the rows at the places that the masks keep.

    Args:
        rows: rows of a call, counted along samples and tokens, in this order or the other.
        masks: bool (samples, tokens) each, False for padding. Those of another shape belong to
            another sequence, such as that of the other half of an encoder-decoder, and are ignored;
            of several that fit, all must keep a place.
    """
    fitting = [mask for mask in masks if rows.places == tuple(mask.shape)]
    fitting = fitting or [mask.mT for mask in masks if rows.places == tuple(mask.mT.shape)]
    fitting = fitting or [mask for mask in masks if rows.places == (mask.numel(),)]
    if not fitting or all(bool(mask.all()) for mask in fitting):
        return rows
    kept = torch.stack([mask.reshape(-1) for mask in fitting]).all(0).nonzero().flatten()

    def take(picks: Tensor | None) -> Tensor:
        return rows.take(kept if picks is None else kept[picks])

    return Rows(len(kept), take, rows.points)


def conv_rows(x: Tensor, module: nn.Module) -> Rows:
    """Return the patches of a Conv1d, Conv2d or Conv3d: (groups, r, channels / groups * kernel).

    ``x`` is (batch, channels, *space) or (channels, *space). Padding in every mode including
    "same", stride, dilation and groups are those of the layer.
    """
    kernel = _sizes(module, "kernel_size")
    x = x.unsqueeze(0) if x.dim() == len(kernel) + 1 else x
    padding: list[int] = list(getattr(module, "_reversed_padding_repeated_twice"))  # noqa: B009
    mode = str(module.padding_mode)
    padded = F.pad(x, padding, mode="constant" if mode == "zeros" else mode)
    window = _Window(kernel, _sizes(module, "stride"), _sizes(module, "dilation"))
    return _window_rows(padded, window, _groups(module), _pixels(x))


def conv_transpose_rows(x: Tensor, module: nn.Module) -> Rows:
    """Return the patches of a ConvTranspose1d, 2d or 3d, with columns in the order of its weight.

    Output positions of a transposed convolution see the input spread by the stride, padded by
    ``dilation * (kernel - 1) - padding``, through the mirrored kernel. Patches are mirrored
    instead, so that the weight stays as it is stored.
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
    window = _Window(kernel, (1,) * len(kernel), dilation, mirrored=True)
    return _window_rows(F.pad(spread, padding), window, _groups(module), _pixels(x))


@dataclass(frozen=True)
class _Window:
    """The window that slides over a padded input, along every spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    mirrored: bool = False

    def positions(self, space: Sequence[int]) -> tuple[int, ...]:
        """Return the number of positions along each axis; 0 if the window does not fit."""
        axes = zip(space, self.kernel, self.strides, self.dilation, strict=True)
        return tuple(max(0, (size - d * (k - 1) - 1) // s + 1) for size, k, s, d in axes)

    def view(self, x: Tensor) -> Tensor:
        """Return a view (batch, channels, *kernel, *positions) of padded (batch, channels, *space).

        A mirrored window flips it, which copies.
        """
        batch, channel, *along = x.stride()
        taps = [stride * d for stride, d in zip(along, self.dilation, strict=True)]
        moves = [stride * s for stride, s in zip(along, self.strides, strict=True)]
        size = (*x.shape[:2], *self.kernel, *self.positions(x.shape[2:]))
        window = x.as_strided(size, (batch, channel, *taps, *moves), x.storage_offset())
        return window.flip(*range(2, 2 + len(taps))) if self.mirrored else window

    def offsets(self, space: Sequence[int]) -> Tensor:
        """Return the offset of each kernel element from the first, in flattened ``space``."""
        offsets = _flat_index([torch.arange(k) for k in self.kernel], self.dilation, space)
        return offsets.flip(0) if self.mirrored else offsets

    def places(self, picks: Tensor | None, batch: int, space: Sequence[int]) -> Tensor:
        """Return where the windows of these rows start, in flattened (batch, *space)."""
        counts = (batch, *self.positions(space))
        chosen = torch.arange(prod(counts)) if picks is None else picks
        sample, *where = torch.unravel_index(chosen, counts)
        begins = sample * prod(space)
        for i, (index, stride) in enumerate(zip(where, self.strides, strict=True)):
            begins = begins + index * stride * prod(space[i + 1 :])
        return begins


def _flat_index(axes: Sequence[Tensor], steps: Sequence[int], space: Sequence[int]) -> Tensor:
    total = torch.zeros((), dtype=torch.int64)
    for i, (index, step) in enumerate(zip(axes, steps, strict=True)):
        total = total.unsqueeze(-1) + index * step * prod(space[i + 1 :])
    return total.reshape(-1)


def _pixels(x: Tensor) -> Rows:
    """Return the channels of (batch, channels, *space) as rows, one per position."""
    last = x.movedim(1, -1)
    places = last.shape[:-1]

    def take(picks: Tensor | None) -> Tensor:
        chosen = torch.arange(prod(places)) if picks is None else picks
        return last[torch.unravel_index(chosen.to(x.device), places)].unsqueeze(0)

    return Rows(prod(places), take)


def _window_rows(x: Tensor, window: _Window, groups: int, points: Rows) -> Rows:
    """Return the rows of padded ``x``; gathered with channels last, for contiguous copies."""
    batch, channels, space = x.shape[0], x.shape[1], x.shape[2:]
    count = batch * prod(window.positions(space))
    columns = channels // groups * prod(window.kernel)

    def take(picks: Tensor | None) -> Tensor:
        if count == 0:  # the layer itself will report that its input is too small
            return x.new_zeros(groups, 0, columns)
        begins = window.places(picks, batch, space)
        where = (begins[:, None] + window.offsets(space)).reshape(-1).to(x.device)
        if channels == groups:  # depthwise: contiguous for each group, as its moments need them
            planes = x.movedim(1, 0).reshape(channels, -1)
            return planes.index_select(1, where).reshape(groups, len(begins), columns)
        pixels = x.movedim(1, -1).reshape(-1, channels)
        patches = pixels.index_select(0, where).reshape(len(begins), -1, groups, channels // groups)
        return patches.permute(2, 0, 3, 1).reshape(groups, len(begins), columns)

    def block(start: int, stop: int) -> Tensor:
        if count == 0:
            return x.new_zeros(stop - start, groups, columns, 0)
        return window.view(x[start:stop]).reshape(stop - start, groups, columns, -1)

    places = (batch, *window.positions(space))
    return Rows(count, take, points, batch, block, places)


def _sizes(module: nn.Module, name: str) -> tuple[int, ...]:
    return tuple(int(size) for size in getattr(module, name))


def _groups(module: nn.Module) -> int:
    return int(getattr(module, "groups"))  # noqa: B009
