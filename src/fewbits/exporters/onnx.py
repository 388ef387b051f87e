"""ONNX: quantized weights and inputs as QuantizeLinear and DequantizeLinear (QDQ).

The graph is that of torch.export. A weight is an integer initializer and its steps; a normalization
after a convolution goes into the steps and the bias, which is exact on the integers. What a runtime
does with a graph is the runtime's: kernels for 8 bits are common, for 4 bits it unpacks to floats,
and below that there is no type. The export says which of these each tensor gets.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..coded import ActivationGrid, ActivationSite, Contents
from ..errors import ConfigError, MissingExtraError, ModelError, require
from ..files.atomic_write import write
from .base import EXPORTERS, Exported
from .fake_quant import Marked, marked
from .graph import absorb_norms, drop_cuts, own_zeros, pack_int4, strip
from .kernels import float_convs, float_gemms
from .processors import PROCESSORS, overflows_here

__all__ = ["ONNX", "OnnxExport"]

OPSET = 21  # the first with 4-bit integers
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
    """A graph of opset 21 in float32, checked by ONNX's own checker.

    Attributes:
        processor: "any" makes 8-bit weights unsigned wherever signed ones may go wrong in
            onnxruntime on x86 without VNNI; the products are the same. "vnni" leaves all of them
            signed, which is faster, and wrong on such a processor; on this one, it warns.
        dynamic_batch: leave the first axis of every input open.
    """

    name: ClassVar[str] = "onnx"
    summary: ClassVar[str] = "a graph whose weights and inputs are integers (QDQ)"
    suffix: ClassVar[str] = ".onnx"
    extra: ClassVar[str] = "onnx"
    runs: ClassVar[str] = "onnxruntime and other readers of opset 21"
    needs: ClassVar[str] = "inputs"
    keeps_codes: ClassVar[bool] = True

    processor: str = "any"
    dynamic_batch: bool = True

    def __post_init__(self) -> None:
        known = f"one of {', '.join(PROCESSORS)}"
        require(self.processor in PROCESSORS, "processor", known, self.processor)
        require(
            isinstance(self.dynamic_batch, bool),
            "dynamic_batch",
            "True or False",
            self.dynamic_batch,
        )

    def export(
        self, contents: Contents, path: Path, model: nn.Module | None, inputs: tuple[Tensor, ...]
    ) -> OnnxExport:
        """Trace the network with ``inputs``, and write its graph.

        Raises:
            MissingExtraError: onnx or onnxscript is not installed (``pip install fewbits[onnx]``).
            ModelError: torch.export cannot follow the network, or its graph is not sound ONNX.
        """
        onnx = _needed()
        if model is None:
            raise ConfigError("a graph is traced from a network: pass model=.")
        anywhere = self.processor == "any"
        found = marked(model, contents, unsigned=anywhere)
        traced = tuple(x.float() if x.dtype in found.dtypes else x for x in inputs)
        graph = _traced(found.network, traced, self.dynamic_batch, unsigned=anywhere)
        _tidy(graph)
        try:
            onnx.checker.check_model(graph, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ModelError(f"the exported graph is not sound ONNX: {error}") from error
        data = graph.SerializeToString()
        write(data, path)
        grids = {name: grid.bits for name, grid in contents.activations.items()}
        if found.wide and not anywhere and overflows_here():
            warnings.warn(_OVERFLOWS, stacklevel=3)
        notes = (*_notes(found, contents), *_form(found, contents), *_slow(graph, contents))
        unsigned = tuple(found.unsigned)
        return OnnxExport(
            path, len(data), dict(found.widths), grids, notes, self.processor, unsigned
        )


def _tidy(graph: Any) -> None:
    """Change the graph to what runtimes compute in integers, its function being the same."""
    absorb_norms(graph)
    drop_cuts(graph)
    pack_int4(graph)
    own_zeros(graph)
    strip(graph)


def _needed() -> Any:
    try:
        import onnx  # noqa: PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError("onnx and onnxscript", "onnx", "the ONNX export") from error
    return onnx


def _traced(network: nn.Module, inputs: tuple[Any, ...], dynamic: bool, *, unsigned: bool) -> Any:
    """Return the ModelProto of ``network``, all its inputs unsigned if asked."""
    shapes: Any = None
    if dynamic:
        if any(len(value) < 2 for value in inputs):
            raise ConfigError("an open batch axis needs an example of two samples or more.")
        batch = torch.export.Dim("batch")
        shapes = tuple({0: batch} for _ in inputs)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(network, inputs, dynamic_shapes=shapes)
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=_translations(unsigned=unsigned),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # whatever a foreign forward pass raises
        raise ModelError(
            f"torch.export cannot follow the network ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}). Its forward pass must not depend on values, "
            "and must take any batch size (or dynamic_batch=False)."
        ) from error
    if made is None:
        raise ModelError("torch.onnx.export returned nothing for this network.")
    return made.model_proto


def _translations(*, unsigned: bool) -> dict[Any, Any]:
    from onnx import TensorProto, helper  # noqa: PLC0415
    from onnxscript import opset21 as op  # noqa: PLC0415

    def scalar(name: str, kind: int, value: float) -> Any:
        return op.Constant(value=helper.make_tensor(name, kind, [], [value]))

    def on_grid(values: Any, clip: float, bits: int, signed: bool, zero: int) -> Any:
        grid = ActivationGrid(bits, clip, signed, zero)
        shift = 128 if unsigned and signed else 0  # runtimes have no signed by unsigned products
        kind = TensorProto.INT8 if signed and not shift else TensorProto.UINT8
        step = scalar("step", TensorProto.FLOAT, float(grid.step))
        if bits < 8:  # the 8-bit type is wider than the grid
            low = scalar("low", TensorProto.FLOAT, (grid.low - zero) * float(grid.step))
            high = scalar("high", TensorProto.FLOAT, (grid.high - zero) * float(grid.step))
            values = op.Clip(values, low, high)
        middle = scalar("zero", kind, zero + shift)
        return op.DequantizeLinear(op.QuantizeLinear(values, step, middle), step, middle)

    def from_grid(index: Any, step: Any, zero: Any, group: int) -> Any:
        if group:
            return op.DequantizeLinear(index, step, zero, axis=1, block_size=group)
        return op.DequantizeLinear(index, step, zero, axis=0)

    ops = torch.ops.fewbits
    return {ops.on_grid.default: on_grid, ops.from_grid.default: from_grid}


def _notes(found: Marked, contents: Contents) -> list[str]:
    notes = [f"{name}: in floats, {why}" for name, why in found.floats.items()]
    if found.dtypes:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found.dtypes))
        notes.append(
            f"the network has {names}; the graph is of float32, and takes and gives float32."
        )
    narrow = [name for name, bits in found.widths.items() if bits == 4]
    if narrow:
        notes.append(
            f"{len(narrow)} weights are 4-bit integers: half a byte each in the file; onnxruntime "
            "unpacks them to floats before it computes, there is no 4-bit convolution."
        )
    if found.grouped:
        notes.append(
            f"{len(found.grouped)} weights have a step for each group of a neuron's inputs: blocks "
            "of DequantizeLinear. Products with them are of floats."
        )
    broad = [name for name, bits in found.widths.items() if bits == 16]
    if broad:
        notes.append(
            f"{len(broad)} weights need 16-bit integers (odd integers of an 8-bit grid without a "
            "zero): onnxruntime unpacks them to floats."
        )
    below = [name for name, grid in contents.activations.items() if grid.bits < 8]
    if below:
        notes.append(
            f"{len(below)} inputs have fewer than 8 bits: a Clip, then 8-bit integers, of which "
            "only the grid's levels occur. No faster than 8 bits."
        )
    if not contents.activations:
        notes.append(
            "inputs are floats: runtimes unpack the weights and compute in floats, or round the "
            "inputs."
        )
    return notes


def _form(found: Marked, contents: Contents) -> list[str]:
    """Return which form 8-bit weights that meet quantized inputs have, and why."""
    if not contents.activations:
        return []
    notes = []
    if found.unsigned:
        notes.append(
            f"{len(found.unsigned)} weights are unsigned (around 128), for any processor: signed "
            "ones would lose sums of two products that exceed 16 bits, in onnxruntime on x86 "
            "without VNNI. processor='vnni', or --processor vnni, leaves them signed, which is "
            "faster where there is VNNI; weights of 7 bits are signed, and right, anywhere."
        )
    elif found.wide:
        notes.append(
            f"{len(found.wide)} weights are signed, for processors with VNNI: on x86 without it "
            "onnxruntime may lose sums of two of their products, and answers are wrong."
        )
    whole = [bits for name, bits in found.widths.items() if name not in found.grouped]
    narrow = whole.count(8) - len(found.wide)
    if narrow:
        notes.append(
            f"{narrow} weights are signed, for any processor: no sum of two of their products "
            "exceeds 16 bits."
        )
    return notes


def _slow(graph: Any, contents: Contents) -> list[str]:
    """Return what onnxruntime computes in floats although its weights and inputs have 8 bits."""
    if not contents.activations:
        return []  # all of it
    known = any(ActivationSite.of(name).output for name in contents.activations)
    advice = "" if known else "; Activations(outputs=True), or --outputs, puts one there"
    reasons = {
        "read": "read floats: what reaches them is not quantized",
        "open": f"end in floats: no quantizer follows them directly{advice}",
        "shared": "end in floats: a shortcut, say, reads what a quantizer reads too",
        "cut": "end in floats: the Clip of inputs with fewer than 8 bits, or a narrow one of the "
        "network, comes before the quantizer; with 8 bits there is no Clip",
    }
    notes = [
        f"{count} layers {reasons[why]}. onnxruntime computes these in floats, and may be slower "
        "than with float32."
        for why, count in float_convs(graph).items()
    ]
    gemms = float_gemms(graph)
    if gemms:
        notes.append(f"{gemms} linear layers are Gemm nodes: onnxruntime unpacks their weights.")
    return notes


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on itself to itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
