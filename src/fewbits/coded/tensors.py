"""Compressed tensors: integer indices and the parameters that turn them back into values.

Every kind dequantizes by elementwise IEEE operations in a fixed order, so the same file gives the
same bits on every machine. numpy only; nothing here knows about networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, require
from .restore import arrange, per_value, product, restore

__all__ = [
    "FLOAT_DTYPES",
    "RAW_DTYPES",
    "WEIGHT_DTYPES",
    "ActivationGrid",
    "AffineTensor",
    "Codebook",
    "CodebookTensor",
    "CodedTensor",
    "Contents",
    "GridTensor",
    "JSONValue",
    "Layout",
    "RawTensor",
    "TransformTensor",
]

JSONValue: TypeAlias = "bool | int | float | str | list[JSONValue] | dict[str, JSONValue] | None"
Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]

FLOAT_DTYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_FLOAT8 = ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")
# Bytes per value of every dtype; float8 and complex values are stored unchanged, never converted.
RAW_DTYPES = FLOAT_DTYPES | {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
RAW_DTYPES |= {f"float8_{form}": 1 for form in _FLOAT8}
RAW_DTYPES |= {"uint64": 8, "uint32": 4, "uint16": 2}
RAW_DTYPES |= {"complex128": 16, "complex64": 8, "complex32": 4}
# Dtypes that summaries count as weights: all floating and complex ones, supported or not.
WEIGHT_DTYPES = frozenset(d for d in RAW_DTYPES if d.startswith(("float", "bfloat", "complex")))


@dataclass(frozen=True)
class Layout:
    """How an index matrix (neurons, inputs) becomes a tensor: reshape, permute, reshape.

    ``tensor = matrix.reshape(split).transpose(axes).reshape(shape)``. Most layers need none (a
    Conv2d weight is its matrix, reshaped); a transposed convolution has its inputs first.
    """

    split: tuple[int, ...]
    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.axes) != list(range(len(self.split))):
            raise ConfigError(
                f"layout axes {self.axes} do not permute {len(self.split)} dimensions"
            )


def _check_rows(name: str, values: Float32, rows: int) -> None:
    require(values.dtype == np.float32, name, "a float32 array", values.dtype)
    require(values.shape in ((1,), (rows,)), f"{name}.shape", f"(1,) or ({rows},)", values.shape)
    require(bool(np.isfinite(values).all()), name, "finite", "NaN or infinity")


def _check_index(index: Int32, shape: tuple[int, ...], layout: Layout | None, dtype: str) -> None:
    size = math.prod(shape)
    got = f"{index.dtype} of shape {index.shape}"
    require(index.dtype == np.int32 and index.ndim == 2, "index", "an int32 matrix", got)
    require(index.size == size, "index.size", f"{size}, the size of shape {shape}", index.size)
    require(dtype in FLOAT_DTYPES, "dtype", f"one of {sorted(FLOAT_DTYPES)}", dtype)
    if layout is not None:
        split = math.prod(layout.split)
        require(split == size, "layout.split", f"of size {size}", layout.split)


def _blocks(index: Int32, shape: tuple[int, ...], layout: Layout | None) -> int:
    """Return into how many blocks, each a row of ``index``, a neuron is divided."""
    sizes = layout.split[: 1 + len(layout.split) - len(shape)] if layout else shape[:1]
    neurons = math.prod(sizes)
    return len(index) // neurons if neurons and len(index) % neurons == 0 else 1


def _order(layout: Layout | None) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    return None if layout is None else (layout.split, layout.axes)


@dataclass(frozen=True, eq=False)
class GridTensor:
    """Uniform grid: ``value = step * (index - offset)``.

    Attributes:
        shape: shape of the tensor it stands for.
        dtype: dtype of that tensor (a key of ``FLOAT_DTYPES``); values are computed in float32.
        index: int32 (rows, columns); a row is a neuron (output channel), or one of several blocks
            of adjacent inputs of a neuron that have a step each.
        step: float32 (1,) or (rows,), finite.
        offset: float32 (1,) or (rows,), a multiple of 1/2 (1/2 for a grid without a zero).
        layout: how the matrix becomes the tensor; None if a reshape is enough.
    """

    shape: tuple[int, ...]
    dtype: str
    index: Int32
    step: Float32
    offset: Float32 = field(default_factory=lambda: np.zeros(1, np.float32))
    layout: Layout | None = None

    def __post_init__(self) -> None:
        _check_index(self.index, self.shape, self.layout, self.dtype)
        _check_rows("step", self.step, len(self.index))
        _check_rows("offset", self.offset, len(self.index))
        with np.errstate(over="ignore"):  # beyond 2^23 every float32 is a multiple of 1/2
            halves = self.offset * np.float32(2)
        require(bool((halves == np.rint(halves)).all()), "offset", "multiples of 1/2", self.offset)

    @property
    def blocks(self) -> int:
        """Rows of the index for each neuron: more than 1 if groups of its inputs have steps."""
        return max(1, _blocks(self.index, self.shape, self.layout))

    def dequantize(self) -> Float32:
        """Return the float32 values in ``shape``: one subtraction and one product per weight."""
        columns = self.index.shape[1]

        def values(index: Int32, run: slice) -> Float32:
            result = index.astype(np.float32)
            result -= per_value(self.offset, columns, run)
            result *= per_value(self.step, columns, run)
            return result

        return restore(self.index, self.shape, _order(self.layout), values)


@dataclass(frozen=True, eq=False)
class AffineTensor:
    """Uniform grid that begins anywhere: ``value = step * index + minimum``.

    For weights that other programs quantized so, with a minimum for each block, like GGUF's Q4_1;
    ``minimum`` is float32, finite, of the size of ``step``. All else as in :class:`GridTensor`.
    """

    shape: tuple[int, ...]
    dtype: str
    index: Int32
    step: Float32
    minimum: Float32
    layout: Layout | None = None

    def __post_init__(self) -> None:
        _check_index(self.index, self.shape, self.layout, self.dtype)
        _check_rows("step", self.step, len(self.index))
        _check_rows("minimum", self.minimum, len(self.index))
        require(self.step.size == self.minimum.size, "minimum", "as many as steps", self.minimum)

    @property
    def blocks(self) -> int:
        """Rows of the index for each neuron; as in :class:`GridTensor`."""
        return max(1, _blocks(self.index, self.shape, self.layout))

    def dequantize(self) -> Float32:
        """Return the float32 values in ``shape``: one product and one sum per weight."""
        columns = self.index.shape[1]

        def values(index: Int32, run: slice) -> Float32:
            result = index.astype(np.float32)
            result *= per_value(self.step, columns, run)
            result += per_value(self.minimum, columns, run)
            return result

        return restore(self.index, self.shape, _order(self.layout), values)


@dataclass(frozen=True, eq=False)
class Codebook:
    """Strictly increasing float32 levels. Tensors with equal ones share them in the file."""

    values: Float32

    def __post_init__(self) -> None:
        values = self.values
        require(
            values.dtype == np.float32 and values.ndim == 1, "values", "float32 (levels,)", values
        )
        require(values.size > 0 and bool(np.isfinite(values).all()), "values", "finite", values)
        rising = bool((values[1:] > values[:-1]).all())
        require(rising, "values", "strictly increasing", values)


@dataclass(frozen=True, eq=False)
class CodebookTensor:
    """Codebook levels, optionally scaled: ``value = scale * codebook.values[index]``.

    ``index`` is int32 (rows, columns) in [0, levels); ``scale`` is float32 (1,) or (rows,). Shape,
    dtype and layout as in :class:`GridTensor`.
    """

    shape: tuple[int, ...]
    dtype: str
    index: Int32
    codebook: Codebook
    scale: Float32 = field(default_factory=lambda: np.ones(1, np.float32))
    layout: Layout | None = None

    def __post_init__(self) -> None:
        _check_index(self.index, self.shape, self.layout, self.dtype)
        _check_rows("scale", self.scale, len(self.index))
        levels = self.codebook.values.size
        inside = self.index.size == 0 or (self.index.min() >= 0 and self.index.max() < levels)
        require(bool(inside), "index", f"in [0, {levels})", "values outside the codebook")

    @property
    def blocks(self) -> int:
        """Rows of the index for each neuron; as in :class:`GridTensor`."""
        return max(1, _blocks(self.index, self.shape, self.layout))

    def dequantize(self) -> Float32:
        """Return the float32 values in ``shape``: one lookup and one product per weight."""
        columns = self.index.shape[1]

        def values(index: Int32, run: slice) -> Float32:
            return self.codebook.values[index] * per_value(self.scale, columns, run)

        return restore(self.index, self.shape, _order(self.layout), values)


@dataclass(frozen=True, eq=False)
class TransformTensor:
    """Coded coefficients in a coded basis (transform quantization, Young et al. 2021).

    ``side="left"``: matrix = basis @ coefficients; ``side="right"``: matrix = coefficients @ basis.
    Both parts are matrices and are counted. The product is accumulated one basis vector at a time
    in float64, then rounded once to float32: slower than a library product, but reproducible.
    """

    shape: tuple[int, ...]
    dtype: str
    coefficients: GridTensor | CodebookTensor
    basis: GridTensor
    side: str = "left"
    layout: Layout | None = None

    def __post_init__(self) -> None:
        require(self.side in ("left", "right"), "side", "'left' or 'right'", self.side)
        require(self.dtype in FLOAT_DTYPES, "dtype", f"one of {sorted(FLOAT_DTYPES)}", self.dtype)
        left, right = self._factors()
        fits = len(left.shape) == len(right.shape) == 2 and left.shape[1] == right.shape[0]
        require(fits, "basis and coefficients", "matrices that multiply", (left.shape, right.shape))
        size = math.prod(self.shape)
        require(
            left.shape[0] * right.shape[1] == size, "shape", "the size of the product", self.shape
        )

    def _factors(self) -> tuple[GridTensor | CodebookTensor, GridTensor | CodebookTensor]:
        pair = (self.basis, self.coefficients)
        return pair if self.side == "left" else (pair[1], pair[0])

    def dequantize(self) -> Float32:
        """Return the float32 values in ``shape``. Cost: rank * size multiply-adds."""
        left, right = (part.dequantize() for part in self._factors())
        return arrange(product(left, right), self.shape, _order(self.layout))


@dataclass(frozen=True, eq=False)
class RawTensor:
    """An uncompressed tensor: its little-endian bytes.

    Attributes:
        shape: shape of the tensor.
        dtype: dtype of the tensor when restored (a key of ``RAW_DTYPES``).
        data: uint8 (bytes,) in the *stored* dtype.
        stored: dtype of ``data``; differs from ``dtype`` only where the recipe asked for 16 bits.
    """

    shape: tuple[int, ...]
    dtype: str
    data: NDArray[np.uint8]
    stored: str = ""

    def __post_init__(self) -> None:
        if not self.stored:
            object.__setattr__(self, "stored", self.dtype)
        for name in ("dtype", "stored"):
            value = getattr(self, name)
            require(value in RAW_DTYPES, name, f"one of {sorted(RAW_DTYPES)}", value)
        size = math.prod(self.shape) * RAW_DTYPES[self.stored]
        require(self.data.dtype == np.uint8, "data", "uint8", self.data.dtype)
        require(
            self.data.size == size, "data.size", f"{size} bytes for {self.shape}", self.data.size
        )


@dataclass(frozen=True)
class ActivationGrid:
    """Quantized input of one layer: ``value = step * (index - zero)``.

    ``index`` is ``round(x / step) + zero``, clamped to [low, high]; ties to even, all in float32.

    Attributes:
        bits: width of an index.
        clip: ``step * high``, > 0; the largest value if ``zero`` is 0.
        signed: whether indices are two's complement rather than unsigned.
        zero: index of the value zero; nonzero only if unsigned.
    """

    bits: int
    clip: float
    signed: bool
    zero: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 16, "bits", "an integer in [1, 16]", self.bits)
        require(self.clip > 0 and np.isfinite(self.clip), "clip", "a positive number", self.clip)
        most = 0 if self.signed else self.high
        require(0 <= self.zero <= most, "zero", f"in [0, {most}]", self.zero)

    @property
    def low(self) -> int:
        """The lowest index."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The highest index."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def step(self) -> np.float32:
        """Spacing of the levels: one float32 division."""
        return np.float32(np.float32(self.clip) / np.float32(max(1, self.high)))


CodedTensor: TypeAlias = GridTensor | AffineTensor | CodebookTensor | TransformTensor | RawTensor


@dataclass(frozen=True, eq=False)
class Contents:
    """Everything one file holds.

    Attributes:
        tensors: name to coded tensor, in the order of the network's state dict.
        aliases: other names of tied tensors, each mapped to the name of the coded tensor.
        activations: layer name to the grid of its quantized input.
        metadata: JSON values: recipe, source of the network, reasons for skipped tensors.
        is_delta: whether the tensors are changes of others, as the metadata says.
    """

    tensors: Mapping[str, CodedTensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    activations: Mapping[str, ActivationGrid] = field(default_factory=dict)
    metadata: Mapping[str, JSONValue] = field(default_factory=dict)
    is_delta: bool = False

    def __post_init__(self) -> None:
        for alias, name in self.aliases.items():
            require(name in self.tensors, f"aliases[{alias!r}]", "the name of a tensor", name)
            require(alias not in self.tensors, "aliases", "names that are not tensors", alias)

    def __repr__(self) -> str:
        counts = {"tensors": self.tensors, "aliases": self.aliases, "grids": self.activations}
        parts = ", ".join(f"{len(entries)} {what}" for what, entries in counts.items() if entries)
        return f"<Contents: {parts or 'nothing'}>"
