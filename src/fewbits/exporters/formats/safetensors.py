"""safetensors with codes: integers, steps and codebooks as tensors, and JSON that joins them.

``docs/export.md`` has a reader of some thirty lines. Its values are those of :func:`fewbits.load`,
bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ...coded import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    CodedTensor,
    Contents,
    GridTensor,
    RawTensor,
    TransformTensor,
)
from ..base import EXPORTERS, Exported
from .integers import without_integers
from .safetensors_file import Stored, stored_array, write_safetensors

__all__ = ["Safetensors"]

VERSION = 1
_PACKED = (1, 2, 4)  # bits of codes of which a byte holds several
_UNSIGNED = {8: np.uint8, 16: np.uint16}
_EXACT = 1 << 22
# Dtypes that numpy has not: bfloat16 is stored as its bits, others as their bytes.
_BYTES = ("float8", "complex128", "complex32")


@EXPORTERS.register("safetensors")
@dataclass(frozen=True, kw_only=True)
class Safetensors:
    """Codes, steps and codebooks as tensors of a .safetensors file.

    The metadata have an entry ``fewbits``: JSON that says how to get the value of each tensor.
    """

    name: ClassVar[str] = "safetensors"
    summary: ClassVar[str] = "codes, steps and codebooks as tensors, and how to join them"
    suffix: ClassVar[str] = ".safetensors"
    extra: ClassVar[str] = ""
    runs: ClassVar[str] = "twenty lines of numpy (docs/export.md)"
    needs: ClassVar[str] = "nothing"
    keeps_codes: ClassVar[bool] = True

    def export(
        self, contents: Contents, path: Path, model: nn.Module | None, inputs: tuple[Tensor, ...]
    ) -> Exported:
        """Write the file; see :class:`fewbits.exporters.Exporter`."""
        made = _Made()
        for name, tensor in contents.tensors.items():
            made.add(name, tensor)
        grids = {
            site: {
                "step": float(grid.step),
                "zero": grid.zero,
                "low": grid.low,
                "high": grid.high,
            }
            for site, grid in contents.activations.items()
        }
        told = {
            "version": VERSION,
            "tensors": made.how,
            "aliases": dict(contents.aliases),
            "inputs": grids,
        }
        text = json.dumps(told, separators=(",", ":"))
        size = write_safetensors(path, made.tensors, {"format": "fewbits", "fewbits": text})
        notes = tuple(f"{name}: as values, for {why}" for name, why in made.values.items())
        inputs_told = {site: grid.bits for site, grid in contents.activations.items()}
        return Exported(path, size, made.bits, inputs_told, notes)


class _Made:
    """What the file will hold."""

    def __init__(self) -> None:
        self.tensors: dict[str, Stored] = {}
        self.how: dict[str, dict[str, Any]] = {}
        self.bits: dict[str, int] = {}
        self.values: dict[str, str] = {}  # why tensors are written as values
        self._codebooks: dict[int, str] = {}

    def add(self, name: str, tensor: CodedTensor) -> None:
        """Add a tensor of the network."""
        how: dict[str, Any] = {"shape": list(tensor.shape), "dtype": tensor.dtype}
        if isinstance(tensor, RawTensor):
            how |= self._plain(name, tensor.data, tensor.stored, tensor.shape)
        elif isinstance(tensor, TransformTensor | AffineTensor):
            self.values[name] = without_integers(tensor)
            how |= self._plain(name, tensor.dequantize(), "float32", tensor.shape)
        else:
            how |= self._matrix(name, tensor)
        self.how[name] = how

    def _plain(
        self, name: str, data: NDArray[Any], dtype: str, shape: tuple[int, ...]
    ) -> dict[str, Any]:
        if dtype.startswith(_BYTES):
            self.tensors[name] = stored_array(data.view(np.uint8).reshape(-1))
            return {"form": "bytes", "data": name}
        bits = dtype == "bfloat16"
        array = data.reshape(-1).view(np.uint16 if bits else dtype).reshape(shape)
        self.tensors[name] = stored_array(array)
        return {"form": "bfloat16" if bits else "plain", "data": name}

    def _matrix(self, name: str, tensor: GridTensor | CodebookTensor) -> dict[str, Any]:
        how: dict[str, Any] = {"data": f"{name}.codes", "matrix": list(tensor.index.shape)}
        codes, low = tensor.index, 0
        if isinstance(tensor, GridTensor):
            low = _shift(tensor)
            codes = tensor.index - low if low else tensor.index
            zero = tensor.offset - np.float32(low)
            how |= {"form": "grid", "step": f"{name}.step", "zero": f"{name}.zero"}
            self.tensors[how["step"]] = _factors(tensor.step)
            self.tensors[how["zero"]] = stored_array(zero)
        else:
            how |= {"form": "codebook", "codebook": self._codebook(name, tensor.codebook)}
            how["scale"] = f"{name}.scale"
            self.tensors[how["scale"]] = _factors(tensor.scale)
        how["bits"], self.tensors[how["data"]] = _packed(codes)
        self.bits[name] = how["bits"]
        if tensor.blocks > 1:
            how["group"] = tensor.index.shape[1]
        if tensor.layout is not None:
            how |= {"split": list(tensor.layout.split), "axes": list(tensor.layout.axes)}
        return how

    def _codebook(self, name: str, codebook: Codebook) -> str:
        """Return the name of a codebook, which tensors may share."""
        known = self._codebooks.setdefault(id(codebook), f"{name}.codebook")
        self.tensors[known] = stored_array(codebook.values)
        return known


def _factors(values: NDArray[np.float32]) -> Stored:
    """Return steps or scales in float16 if that is exact, as for steps of 8 significant bits."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return stored_array(half if (half == values).all() else values)


def _shift(tensor: GridTensor) -> int:
    """Return the integer that codes start at; 0 where moving them would not be exact."""
    if not tensor.index.size:
        return 0
    largest = max(int(np.abs(part).max()) for part in (tensor.index, tensor.offset))
    return int(tensor.index.min()) if largest < _EXACT else 0


def _packed(codes: NDArray[np.int32]) -> tuple[int, Stored]:
    """Return the bits of a code, and the codes; those of 4 bits and fewer share bytes."""
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    if low < 0 or high >= 1 << 16:
        return 32, stored_array(codes)
    for bits in _PACKED:
        if high < 1 << bits:
            share = 8 // bits
            padded = np.zeros(-(-codes.size // share) * share, np.uint8)
            padded[: codes.size] = codes.reshape(-1)
            places = padded.reshape(-1, share) << np.arange(0, 8, bits, dtype=np.uint8)
            return bits, stored_array(np.bitwise_or.reduce(places, axis=1))
    bits = 8 if high < 1 << 8 else 16
    return bits, stored_array(codes.astype(_UNSIGNED[bits]))
