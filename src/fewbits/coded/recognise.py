"""Find the grid on which the values of a float tensor lie, so that it is stored as codes and steps.

Checkpoints that were quantized before, and written as floats again, have few values: in the whole
tensor, in each row, or in each block of a row, whose step is often a 16-bit float. What is found is
checked against the bits of every value, so a tensor comes back exactly or is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from .tensors import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    CodedTensor,
    GridTensor,
    RawTensor,
)

__all__ = ["recognised"]

LEAST = 4096  # values of a tensor that is worth a look
MOST_LEVELS = 256
FEW_LEVELS = 16  # for which steps of rows and blocks are not looked for
BLOCKS = (0, 256, 128, 64, 32, 16)  # values with a step of their own; 0: those of a row
SLAB = 1 << 20  # values at a time
SAMPLE = 16  # blocks that must fit before the others are looked at
RARE = 16  # at most one in so many blocks is unlike all of the sample
SYMMETRIC = (*range(1, 17), 31, 32, 63, 64, 127, 128)  # the largest index of a block
WHOLE = (1, 3, 7, 15, 31, 63, 127, 255)  # the same where the smallest is 0
BITS = {"float64": "<u8", "float32": "<u4", "float16": "<u2", "bfloat16": "<u2"}
NEAR = (0, 1, -1)  # units in the last place from the likeliest step

Bits = NDArray[np.unsignedinteger]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Places = NDArray[np.int64]


def recognised(raw: RawTensor) -> CodedTensor:
    """Return a tensor with the bits of ``raw``: on a grid or a codebook if its values are, or raw.

    Cost: a look at some values; a few passes over those of a tensor that is on a grid.
    """
    if raw.dtype not in BITS or raw.stored != raw.dtype or prod(raw.shape) < LEAST:
        return raw
    bits = raw.data.view(BITS[raw.dtype])
    with np.errstate(all="ignore"):
        book = _palette(raw, bits)
        if book is not None and book.codebook.values.size <= FEW_LEVELS:
            return book
        if not _all_finite(bits, raw.dtype):  # no step gives infinity but by overflow
            return raw if book is None else book
        limit = _plain_bits(bits) if book is None else _entropy(book.index)
        for size in BLOCKS:
            grid = _blocks(raw, bits, size, limit)
            if grid is not None:
                return grid
    return raw if book is None else book


def _all_finite(bits: Bits, dtype: str) -> bool:
    parts = (bits[start : start + SLAB] for start in range(0, bits.size, SLAB))
    return all(bool(np.isfinite(_values(part, dtype)).all()) for part in parts)


def _palette(raw: RawTensor, bits: Bits) -> CodebookTensor | None:
    """Return the tensor on a codebook, if it has few values, all of them finite."""
    if np.unique(bits[: 16 * MOST_LEVELS]).size > MOST_LEVELS:
        return None
    distinct = np.unique(bits)
    values = _values(distinct, raw.dtype)
    levels = values.astype(np.float32)
    exact = np.isfinite(levels).all() and (levels == values).all()
    if distinct.size > MOST_LEVELS or not exact or np.unique(levels).size < distinct.size:
        return None  # the last: both zeros
    order = np.argsort(levels)
    rank = np.empty(distinct.size, np.int32)
    rank[order] = np.arange(distinct.size, dtype=np.int32)
    index = np.empty(bits.size, np.int32)
    for start in range(0, bits.size, SLAB):
        part = slice(start, start + SLAB)
        index[part] = rank[np.searchsorted(distinct, bits[part])]
    book = Codebook(np.ascontiguousarray(levels[order]))
    return CodebookTensor(raw.shape, raw.dtype, index.reshape(_matrix(raw.shape)), book)


def _blocks(
    raw: RawTensor, bits: Bits, size: int, limit: float
) -> GridTensor | AffineTensor | None:
    """Return the tensor with a step for each block of so many values in a row.

    None if none fits, or if it takes ``limit`` bits per value or more.

    Symmetric grids come first: they store one number for each block, affine ones two.
    """
    columns = _matrix(raw.shape)[1]
    width = size or columns
    if columns % width or width < 16 or (size and size == columns):
        return None
    if width > MOST_LEVELS and np.unique(bits[:width]).size > MOST_LEVELS:
        return None
    blocks = bits.reshape(-1, width)
    for affine in (False, True):
        fitted = _Fit.of(blocks, raw.dtype, affine)
        if fitted is not None and fitted.taken() < limit:
            step = fitted.step
            if affine:
                return AffineTensor(raw.shape, raw.dtype, fitted.index, step, fitted.minimum)
            return GridTensor(raw.shape, raw.dtype, fitted.index, step)
    return None


@dataclass(frozen=True)
class _Guess:
    """A largest index, and how the step is rounded, that may fit a block."""

    most: int
    rounded: Callable[[Float64], Float32]
    near: int

    def steps(self, extent: Float64) -> Float32:
        """Return the steps of blocks, given their extents."""
        step = self.rounded(extent / self.most)
        return step if not self.near else _moved(step, self.near * _unit(self.rounded))


@dataclass(frozen=True, eq=False)
class _Fit:
    """Indices, steps and minima of all blocks."""

    index: Int32
    step: Float32
    minimum: Float32

    @classmethod
    def of(cls, blocks: Bits, dtype: str, affine: bool) -> _Fit | None:
        """Fit all blocks, or return None; blocks here and there decide whether to try."""
        likely: dict[_Guess, int] = {}
        guesses = list(_guesses(affine, dtype))
        for place in np.unique(np.linspace(0, len(blocks) - 1, SAMPLE).astype(int)):
            block = blocks[place : place + 1]
            hit = next(
                (g for g in [*likely, *guesses] if _fit(block, dtype, affine, g)[0][0]), None
            )
            if hit is None:
                return None
            likely[hit] = likely.get(hit, 0) + 1
        likely = dict(sorted(likely.items(), key=lambda item: -item[1]))
        others = [guess for guess in guesses if guess not in likely]
        fit = cls(
            np.zeros(blocks.shape, np.int32),
            np.ones(len(blocks), np.float32),
            np.zeros(len(blocks), np.float32),
        )
        count = max(1, SLAB // blocks.shape[1])
        for start in range(0, len(blocks), count):
            every = np.arange(start, min(start + count, len(blocks)))
            left = fit.add(blocks, dtype, affine, every, list(likely))
            if RARE * left.size > every.size or fit.add(blocks, dtype, affine, left, others).size:
                return None
        return fit

    def add(
        self, blocks: Bits, dtype: str, affine: bool, left: Places, guesses: list[_Guess]
    ) -> Places:
        """Fit the blocks at the places ``left``; return those that no guess fits."""
        for guess in guesses:
            if not left.size:
                break
            good, index, step, minimum = _fit(blocks[left], dtype, affine, guess)
            done = left[good]
            self.index[done], self.step[done] = index[good], step[good]
            self.minimum[done] = minimum[good]
            left = left[~good]
        return left

    def taken(self) -> float:
        """Estimate the bits of a value."""
        index = self.index[: max(1, SLAB // self.index.shape[1])]
        bits = _entropy(index - index.min())
        for part in (self.step, self.minimum):
            share = np.unique(part[: len(index)]).size / len(index)
            bits += 32 * min(1.0, 2 * share) / index.shape[1]
        return bits


def _guesses(affine: bool, dtype: str) -> Iterator[_Guess]:
    """Yield guesses, the likeliest first.

    Steps of 16 bits take fewer bytes, and one of float32 fits some of their blocks too. Values of
    bfloat16 have so few bits that a coarse step fits many grids, most of them finer than theirs.
    """
    roundings = [_as_bfloat16, _as_float16, _as_float32]
    if dtype == "bfloat16":
        roundings = [_as_float32, _as_float16, _as_bfloat16]
    for near in NEAR:
        for rounded in roundings:
            for most in reversed(WHOLE if affine else SYMMETRIC):
                yield _Guess(most, rounded, near)


def _fit(
    bits: Bits, dtype: str, affine: bool, guess: _Guess
) -> tuple[NDArray[np.bool_], Int32, Float32, Float32]:
    """Return which blocks a guess fits, and their indices, steps and minima."""
    values = _values(bits, dtype)
    low = values.min(axis=1)
    if affine:
        step = guess.steps(values.max(axis=1) - low)
        minimum = low.astype(np.float32)
        index = np.rint((values - low[:, None]) / step[:, None])
        index = np.nan_to_num(index).clip(0, guess.most).astype(np.int32)
        made = index.astype(np.float32) * step[:, None] + minimum[:, None]
    else:
        step = _signed_steps(values, low, guess)
        minimum = np.zeros_like(step)
        index = np.rint(values / step[:, None])
        index = np.nan_to_num(index).clip(-guess.most, guess.most).astype(np.int32)
        made = index.astype(np.float32) * step[:, None]
    good = (_bits(made, dtype) == bits).all(axis=1)
    good &= np.isfinite(step) & np.isfinite(minimum)
    return good, index, step, minimum


def _signed_steps(values: Float64, low: Float64, guess: _Guess) -> Float32:
    """Return the steps of symmetric grids, negative where that gives the zeros their sign.

    Without zeros, the value furthest from zero is below it where a grid has one more index there.
    """
    high = values.max(axis=1)
    below = -low > high
    extent = np.where(below, -low, high)
    step = guess.steps(extent)
    step = np.where(step == 0, np.float32(1), step)
    zeros = values == 0
    minus = (zeros & np.signbit(values)).any(axis=1)
    if guess.most > 1 and guess.most & (guess.most - 1) == 0:
        minus |= ~zeros.any(axis=1) & ~below
    return np.where(minus, -step, step).astype(np.float32)


def _plain_bits(bits: Bits) -> float:
    """Estimate the bits that a value takes as a float."""
    flat = bits[:SLAB]
    parts = flat.view(np.uint8).reshape(flat.size, -1)
    return sum(_entropy(parts[:, place]) for place in range(parts.shape[1]))


def _entropy(symbols: NDArray[np.integer]) -> float:
    """Return the bits of a symbol >= 0 under the distribution of all of them."""
    counts = np.bincount(symbols.reshape(-1))
    shares = counts[counts > 0] / symbols.size
    return float(-(shares * np.log2(shares)).sum())


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def _values(bits: Bits, dtype: str) -> Float64:
    """Return the float64 values of bits."""
    if dtype == "bfloat16":
        return (bits.astype("<u4") << np.uint32(16)).view("<f4").astype(np.float64)
    return bits.view(f"<f{bits.dtype.itemsize}").astype(np.float64)


def _bits(values: Float32, dtype: str) -> Bits:
    """Return the bits of float32 values in a dtype, as reading a file converts them."""
    if dtype == "bfloat16":
        word = values.view(np.uint32)
        half = np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))
        return ((word + half) >> np.uint32(16)).astype(np.uint16)
    kind = np.dtype(BITS[dtype])
    found: Bits = values.astype(f"<f{kind.itemsize}").view(kind)
    return found


def _as_float32(values: Float64) -> Float32:
    return values.astype(np.float32)


def _as_float16(values: Float64) -> Float32:
    return values.astype(np.float16).astype(np.float32)


def _as_bfloat16(values: Float64) -> Float32:
    word = values.astype(np.float32).view(np.uint32)
    half = np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))
    return ((word + half) & np.uint32(0xFFFF0000)).view(np.float32)


def _unit(rounded: Callable[[Float64], Float32]) -> int:
    """Return the last place of a rounded step, in those of float32."""
    return 1 if rounded is _as_float32 else 1 << 13 if rounded is _as_float16 else 1 << 16


def _moved(steps: Float32, units: int) -> Float32:
    return (steps.view(np.int32) + np.int32(units)).view(np.float32)
