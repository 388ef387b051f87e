"""The graph of a network: what ``torch.export`` follows, with our operators as nodes of ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...coded import ActivationGrid
from ...errors import ConfigError, MissingExtraError, ModelError
from .codebooks import mark

__all__ = ["OPSETS", "needed", "traced"]

OPSETS = {21: 4, 25: 2}  # opsets that are written, and the bits of the narrowest integers they have
_AXES = ("batch", "sequence")


def needed(opset: int) -> Any:
    """Import what makes and checks graphs of an opset; return onnx."""
    try:
        import onnx  # noqa: PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError("onnx and onnxscript", "onnx", "the ONNX export") from error
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise ConfigError(
            f"onnx {onnx.__version__} knows opsets up to {newest}, and opset={opset} was asked "
            "for. Install a newer onnx, or leave out opset."
        )
    return onnx


def traced(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    axes: tuple[bool, bool],
    *,
    unsigned: bool,
    opset: int = 21,
) -> Any:
    """Return the ModelProto of ``network``, all its quantized inputs unsigned if asked.

    ``axes``: whether the first and the second one of every input are open.
    """
    # Networks have a longest text, which a named dimension would have to know.
    kinds: tuple[Any, Any] = (torch.export.Dim("batch"), torch.export.Dim.DYNAMIC)
    dims = {place: kinds[place] for place, wanted in enumerate(axes) if wanted}
    for place in dims:
        if any(value.dim() > place and value.shape[place] < 2 for value in inputs):
            what = f"an open {_AXES[place]} axis needs an example of two"
            raise ConfigError(f"{what} {'tokens' if place else 'samples'} or more.")
    shapes = tuple({p: dim for p, dim in dims.items() if p < value.dim()} for value in inputs)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(network, inputs, dynamic_shapes=shapes if dims else None)
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=_translations(unsigned=unsigned),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # whatever a foreign forward pass raises
        raise ModelError(
            f"torch.export cannot follow the network ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}). Its forward pass must not depend on values, "
            "and must take any size of its open axes (dynamic_batch=False closes the first)."
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
    return {
        ops.on_grid.default: on_grid,
        ops.from_grid.default: from_grid,
        ops.from_codebook.default: mark(),
    }


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
