"""ONNX for onnxruntime alone: linear layers and embeddings on packed integers of 2, 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ...errors import require
from ..base import EXPORTERS
from .notes import packed_weights
from .packed import Packed, pack_blocks
from .qdq import ONNX

__all__ = ["ONNXNBits"]

LEVELS = (0, 4)


@EXPORTERS.register("onnx-nbits")
@dataclass(frozen=True, kw_only=True)
class ONNXNBits(ONNX):
    """A graph whose linear layers are onnxruntime's MatMulNBits; what does not fit is as in "onnx".

    Integers and steps are those of the compressed network. Embeddings are GatherBlockQuantized; one
    that is tied to an output layer shares its integers with it.

    Attributes:
        accuracy_level: 4 rounds the inputs of every product to 8 bits, in blocks, for kernels of
            integers; 0 computes in floats, which takes longer.
        processor: as of "onnx", for what stays as there.
        dynamic_batch: as of "onnx".
        dynamic_sequence: as of "onnx".
    """

    name: ClassVar[str] = "onnx-nbits"
    summary: ClassVar[str] = (
        "the same, with linear layers and embeddings as MatMulNBits and GatherBlockQuantized"
    )
    runs: ClassVar[str] = "onnxruntime"
    tables: ClassVar[bool] = True

    accuracy_level: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        known = " or ".join(map(str, LEVELS))
        require(self.accuracy_level in LEVELS, "accuracy_level", known, self.accuracy_level)

    def _packed(self, graph: Any) -> Packed:
        return pack_blocks(graph, self.accuracy_level)

    def _packed_notes(self, packed: Packed) -> list[str]:
        return packed_weights(packed, self.accuracy_level)
