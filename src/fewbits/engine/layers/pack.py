"""Convert between torch tensors and coded tensors: pack results of methods, unpack any tensor."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from ...coded import (
    FLOAT_DTYPES,
    AffineTensor,
    Codebook,
    CodebookTensor,
    CodedTensor,
    GridTensor,
    Layout,
    RawTensor,
    TransformTensor,
)
from ...errors import ModelError
from ...ops.transforms import SIDES
from .layer import Quantized, QuantizedMatrix, QuantizedTransform
from .targets import Target

__all__ = ["pack", "pack_raw", "pack_state", "restored", "to_torch", "torch_dtype", "unpack"]

_NARROW = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def pack(
    result: Quantized,
    target: Target,
    dtype: torch.dtype,
    codebooks: dict[bytes, Codebook] | None = None,
) -> CodedTensor:
    """Return the coded tensor of one weight; ``dtype`` is the weight's own.

    Tensors packed with the same ``codebooks`` share codebooks of equal levels.
    """
    if isinstance(result, QuantizedTransform):
        return _pack_transform(result, target, dtype)
    # Blocks of columns with steps of their own are rows of the file's matrix; its layout reshapes
    # a matrix first, so it is the same.
    index = np.ascontiguousarray(result.rows.to(torch.int32).cpu().numpy())
    name, layout = _name(dtype), target.view.layout
    if result.levels is not None:
        scale = np.ones(1, np.float32) if result.scale is None else _vector(result.scale)
        levels = _vector(result.levels)
        known = {} if codebooks is None else codebooks
        book = known.setdefault(levels.tobytes(), Codebook(levels))
        return CodebookTensor(target.shape, name, index, book, scale, layout)
    if result.step is None:
        raise ModelError(f"weight {target.name!r}: the method returned neither step nor levels.")
    offset = _vector(torch.as_tensor(result.offset))
    return GridTensor(target.shape, name, index, _vector(result.step), offset, layout)


def _pack_transform(
    result: QuantizedTransform, target: Target, dtype: torch.dtype
) -> TransformTensor:
    coefficients, basis = (
        GridTensor(
            (len(index), index.shape[1]),
            "float32",
            np.ascontiguousarray(index.to(torch.int32).cpu().numpy()),
            _vector(step),
            _vector(offset),
        )
        for index, step, offset in (
            (result.index, result.step, result.offset),
            (result.basis, result.basis_step, torch.zeros(1)),
        )
    )
    layout = _unfolded(result, target)
    return TransformTensor(target.shape, _name(dtype), coefficients, basis, "left", layout)


def _unfolded(result: QuantizedTransform, target: Target) -> Layout | None:
    """Return how the unfolded matrix becomes the tensor; None if a reshape is enough.

    Its axes permute (groups, neurons, input channels, taps); the position of 0 among them shows
    which channels the rows of the matrix are.
    """
    groups, neurons, columns = result.shape
    sizes = (groups, neurons, columns // result.kernel, *target.view.kernel)
    taps = range(3, len(sizes))
    order = [2, 0, 1, *taps] if result.side == "row" else [1, 0, 2, *taps]
    own: Sequence[int] = range(len(sizes))
    if target.view.layout is not None:
        own = target.view.layout.axes
        if len(own) < len(sizes):
            own = [0, *(axis + 1 for axis in own)]
    axes = tuple(order.index(axis) for axis in own)
    moved = [axis for axis in axes if sizes[order[axis]] > 1]
    if moved == sorted(moved):
        return None
    return Layout(tuple(sizes[axis] for axis in order), axes)


def unpack(coded: CodedTensor, target: Target) -> Quantized | None:
    """Undo :func:`pack`; None for a tensor that no method quantized.

    Raises:
        ModelError: a transform that does not fit the layer.
    """
    view = target.view
    shape = (view.groups, view.rows // view.groups, view.columns(target.shape))
    if isinstance(coded, RawTensor | AffineTensor):
        return None
    if isinstance(coded, TransformTensor):
        return _unpack_transform(coded, target, shape)
    index = torch.from_numpy(coded.index).reshape(shape)
    blocks = len(coded.index) // view.rows if view.rows else 1
    group = coded.index.shape[1] if blocks > 1 and blocks * view.rows == len(coded.index) else 0
    if isinstance(coded, CodebookTensor):
        levels, scale = torch.from_numpy(coded.codebook.values), torch.from_numpy(coded.scale)
        return QuantizedMatrix(index, None, levels=levels, scale=scale, group=group)
    step, offset = torch.from_numpy(coded.step), torch.from_numpy(coded.offset)
    return QuantizedMatrix(index, step, offset, group=group)


def _unpack_transform(
    coded: TransformTensor, target: Target, shape: tuple[int, int, int]
) -> QuantizedTransform:
    coefficients, kernel = coded.coefficients, prod(target.view.kernel)
    for side in SIDES:
        if not isinstance(coefficients, GridTensor):
            break
        candidate = QuantizedTransform(
            torch.from_numpy(coefficients.index),
            torch.from_numpy(coefficients.step),
            torch.from_numpy(coefficients.offset),
            torch.from_numpy(coded.basis.index),
            torch.from_numpy(coded.basis.step),
            side,
            shape,
            kernel,
        )
        channels = shape[2] // kernel if side == "row" else shape[1]
        if len(coded.basis.index) == channels and _unfolded(candidate, target) == coded.layout:
            return candidate
    raise ModelError(
        f"weight {target.name!r}: its transform is not one that fewbits makes for such a layer. "
        "Start from a file that fewbits wrote for this network."
    )


def pack_state(
    state: Mapping[str, Tensor],
    *,
    results: Mapping[str, Quantized],
    targets: Mapping[str, Target],
    aliases: Mapping[str, str],
    raw_dtype: str,
    exact: Container[str] = (),
) -> dict[str, CodedTensor]:
    """Pack every tensor of a state dict, coded or raw; aliases of tied tensors are left out.

    Equal codebooks become one, which a file stores once. Tensors in ``exact`` keep their dtype,
    because they are views of shared memory, which cannot have two values.
    """
    tensors: dict[str, CodedTensor] = {}
    codebooks: dict[bytes, Codebook] = {}
    for name, tensor in state.items():
        if name in aliases:
            continue
        if name in results:
            tensors[name] = pack(results[name], targets[name], tensor.dtype, codebooks)
        else:
            tensors[name] = pack_raw(tensor, "keep" if name in exact else raw_dtype)
    return tensors


def pack_raw(tensor: Tensor, raw_dtype: str = "keep") -> RawTensor:
    """Return ``tensor`` as bytes, in 16 bits if requested and if every value allows it.

    Each value must stay finite and change by at most a factor of 2**-8; otherwise the whole tensor
    keeps its own dtype.
    """
    own = _name(tensor.dtype)
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    flat = plain.contiguous().reshape(-1)
    stored = own
    if raw_dtype in _NARROW and own in FLOAT_DTYPES and FLOAT_DTYPES[own] > 2:
        narrow = flat.to(_NARROW[raw_dtype])
        error = (narrow.to(flat.dtype) - flat).abs()
        if bool((error <= flat.abs() * 2**-8).all()):
            flat, stored = narrow, raw_dtype
    data = flat.view(torch.uint8).numpy().copy() if flat.numel() else np.zeros(0, np.uint8)
    return RawTensor(tuple(tensor.shape), own, data, stored)


def to_torch(coded: CodedTensor) -> Tensor:
    """Return the values of any coded tensor, in its shape and dtype, in new memory."""
    dtype = torch_dtype(coded.dtype)
    if not isinstance(coded, RawTensor):
        return torch.from_numpy(coded.dequantize()).to(dtype)
    if coded.data.size == 0:
        return torch.empty(coded.shape, dtype=dtype)
    stored = torch_dtype(coded.stored)
    return torch.from_numpy(coded.data.copy()).view(stored).to(dtype).reshape(coded.shape)


def restored(base: Tensor, difference: Tensor) -> Tensor:
    """Return a weight in the dtype of its base, given the difference in float32.

    The sum is one of float32 (of float64 where the base is), and is rounded to the dtype once: to
    the bit what SPEC.md, section 9.3, says.
    """
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    return (base.to(wide) + difference.to(wide)).to(base.dtype)


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of this name; ModelError if this version of torch lacks it."""
    known = getattr(torch, name, None)
    if not isinstance(known, torch.dtype):
        raise ModelError(
            f"a tensor of the file has dtype {name}, which torch {torch.__version__} does not "
            "support. Install a newer torch."
        )
    return known


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _vector(values: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return values.detach().to(torch.float32).cpu().reshape(-1).numpy().copy()
