"""ONNX: quantized weights and inputs as QuantizeLinear and DequantizeLinear (QDQ).

The graph is that of torch.export. A weight is an integer initializer and its steps, or indices into
a table of levels; a normalization after a convolution goes into the steps and the bias, which is
exact on the integers. What a runtime does with a graph is the runtime's: kernels for 8 bits are
common, below that it unpacks to floats, and there are types of 2 bits from opset 25 on only. The
export says which of these each tensor gets.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ...coded import Contents
from ...errors import ConfigError, ModelError, require
from ...files.atomic_write import write
from ..base import EXPORTERS, Checked, Exported
from .check import checked
from .codebooks import join_codebooks
from .fake_quant import Marked, marked
from .graph import absorb_norms, drop_cuts, own_zeros, pack_narrow, strip
from .notes import form, slow, what_differs
from .packed import Packed
from .processors import PROCESSORS, overflows_here
from .trace import OPSETS, needed, traced

__all__ = ["ONNX", "OnnxExport"]

_OVERFLOWS = (
    "this processor has no VNNI: onnxruntime loses sums of products of signed 8-bit weights here, "
    "and this file's answers will be wrong. Export with processor='any' for this machine."
)


@dataclass(frozen=True)
class OnnxExport(Exported):
    """An ONNX file that was written.

    Attributes:
        processor: where the file gives right answers: "any", or "vnni".
        unsigned: the weights that are unsigned integers around 128.
    """

    processor: str = "any"
    unsigned: tuple[str, ...] = ()


@EXPORTERS.register("onnx")
@dataclass(frozen=True, kw_only=True)
class ONNX:
    """A graph in float32, checked by ONNX's own checker.

    Attributes:
        processor: "any" makes 8-bit weights unsigned wherever signed ones may go wrong in
            onnxruntime on x86 without VNNI; the products are the same. "vnni" leaves all of them
            signed, which is faster, and wrong on such a processor; on this one, it warns.
        dynamic_batch: leave the first axis of every input open.
        dynamic_sequence: leave the second one open too: the length of texts.
        opset: 21, whose narrowest integers have 4 bits, or 25, which has those of 2 bits too, and
            which fewer readers know.
    """

    name: ClassVar[str] = "onnx"
    summary: ClassVar[str] = "a graph whose weights and inputs are integers (QDQ)"
    suffix: ClassVar[str] = ".onnx"
    extra: ClassVar[str] = "onnx"
    runs: ClassVar[str] = "onnxruntime and other readers of its opset"
    needs: ClassVar[str] = "inputs"
    keeps_codes: ClassVar[bool] = True
    tables: ClassVar[bool] = False  # whether embeddings and tied weights stay integers

    processor: str = "any"
    dynamic_batch: bool = True
    dynamic_sequence: bool = False
    opset: int = 21

    def __post_init__(self) -> None:
        known = f"one of {', '.join(PROCESSORS)}"
        require(self.processor in PROCESSORS, "processor", known, self.processor)
        for name in ("dynamic_batch", "dynamic_sequence"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, "True or False", value)
        known = f"one of {', '.join(map(str, OPSETS))}"
        whole = isinstance(self.opset, int) and not isinstance(self.opset, bool)
        require(whole and self.opset in OPSETS, "opset", known, self.opset)

    def export(
        self, contents: Contents, path: Path, model: nn.Module | None, inputs: tuple[Tensor, ...]
    ) -> OnnxExport:
        """Trace the network with ``inputs``, and write its graph.

        Raises:
            MissingExtraError: onnx or onnxscript is not installed (``pip install fewbits[onnx]``).
            ModelError: torch.export cannot follow the network, or its graph is not sound ONNX.
        """
        onnx = needed(self.opset)
        if model is None:
            raise ConfigError("a graph is traced from a network: pass model=.")
        anywhere = self.processor == "any"
        narrowest = OPSETS[self.opset]
        found = marked(model, contents, unsigned=anywhere, tables=self.tables, narrowest=narrowest)
        given = tuple(x.float() if x.dtype in found.dtypes else x for x in inputs)
        axes = (self.dynamic_batch, self.dynamic_sequence)
        graph = traced(found.network, given, axes, unsigned=anywhere, opset=self.opset)
        absorb_norms(graph)
        drop_cuts(graph)
        packed = self._packed(graph)
        _tidy(graph, narrowest)
        packed_bits = _settle(found, packed, contents.aliases)
        try:
            onnx.checker.check_model(graph, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ModelError(f"the exported graph is not sound ONNX: {error}") from error
        data = graph.SerializeToString()
        write(data, path)
        grids = {name: grid.bits for name, grid in contents.activations.items()}
        if found.wide and not anywhere and overflows_here():
            warnings.warn(_OVERFLOWS, stacklevel=3)
        notes = (
            *self._packed_notes(packed),
            *what_differs(found, contents),
            *form(found, contents),
            *slow(graph, contents),
        )
        unsigned = tuple(found.unsigned)
        widths = found.widths | packed_bits | found.codebooks
        return OnnxExport(
            path,
            len(data),
            widths,
            grids,
            notes,
            processor=self.processor,
            unsigned=unsigned,
        )

    def check(
        self, contents: Contents, path: Path, model: nn.Module, inputs: tuple[Tensor, ...]
    ) -> Checked:
        """Run the file at ``path`` in onnxruntime, beside the graph of the floats.

        Raises:
            MissingExtraError: onnxruntime is not installed (``pip install fewbits[onnx]``).
            ModelError: onnxruntime cannot run the file.
        """
        axes = (self.dynamic_batch, self.dynamic_sequence)
        return checked(contents, path, model, inputs, axes)

    def _packed(self, graph: Any) -> Packed:
        """Give weights forms of one runtime, and say which; QDQ is for every runtime."""
        return Packed()

    def _packed_notes(self, packed: Packed) -> list[str]:
        return []


def _tidy(graph: Any, narrowest: int) -> None:
    """Give what is left the forms and the names that runtimes want."""
    join_codebooks(graph, narrowest)
    pack_narrow(graph, narrowest)
    own_zeros(graph)
    strip(graph)


def _settle(found: Marked, packed: Packed, aliases: Mapping[str, str]) -> dict[str, int]:
    """Take what was packed out of ``found``; return its bits by the names of the file."""
    bits = {aliases.get(name, name): width for name, width in packed.bits.items()}
    for name in (*bits, *packed.floats):
        found.widths.pop(name, None)
        for names in (found.wide, found.unsigned, found.grouped):
            if name in names:
                names.remove(name)
    found.floats |= {name: packed.left[name] for name in packed.floats}
    return bits
