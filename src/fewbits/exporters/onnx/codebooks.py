"""Weights on codebooks: indices and a table of levels in the graph, which Gather joins.

In the traced network they are an operator of our own, and in its graph a node of a domain of our
own: optimizers of graphs compute what they know, and would store values. Once they are done, the
node becomes Cast, Gather and Mul, which runtimes compute when they load the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...coded import CodebookTensor
from .graph import add, add_narrow, sweep, values_of

__all__ = ["index_bits", "join_codebooks", "looked_up", "mark"]

_DOMAIN, _MARK = "fewbits", "FromCodebook"
_TYPES = {2: np.uint8, 4: np.uint8, 8: np.uint8, 16: np.uint16}


@torch.library.custom_op("fewbits::from_codebook", mutates_args=())
def from_codebook(index: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    """Return ``levels[index] * scale``; scales are (1, 1), or (rows, 1) of an index of rows."""
    return levels[index.long()] * scale


@from_codebook.register_fake
def _(index: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    return torch.empty(index.shape, dtype=torch.float32)


def index_bits(tensor: CodebookTensor, narrowest: int) -> int:
    """Return the bits of an index in a graph; 0 where values take no more bytes than all of it.

    Args:
        tensor: on the codebook.
        narrowest: unsigned integers that graphs have, in bits.
    """
    levels, size = tensor.codebook.values.size, tensor.index.size
    fits = (bits for bits in _TYPES if bits >= narrowest and levels <= 1 << bits)
    bits = next(fits, 0)
    taken = size * bits / 8 + 4 * (levels + tensor.scale.size)
    return bits if taken < 4 * size else 0


def looked_up(tensor: CodebookTensor, bits: int) -> nn.Module:
    """Return a parametrization that gives the values of ``tensor``, whatever it is given.

    The operator gives a matrix; what makes the weight of it follows as nodes of their own.
    """
    return _FromCodebook(tensor, bits)


class _FromCodebook(nn.Module):
    def __init__(self, tensor: CodebookTensor, bits: int) -> None:
        super().__init__()
        self.index: Tensor
        self.levels: Tensor
        self.scale: Tensor
        self.shape, self.layout = tensor.shape, tensor.layout
        self.register_buffer("index", torch.from_numpy(tensor.index.astype(_TYPES[bits])))
        self.register_buffer("levels", torch.from_numpy(tensor.codebook.values.copy()))
        self.register_buffer("scale", torch.from_numpy(tensor.scale.copy()).reshape(-1, 1))

    def forward(self, weight: Tensor) -> Tensor:
        made: Tensor = torch.ops.fewbits.from_codebook(self.index, self.levels, self.scale)
        if self.layout is not None:
            made = made.reshape(self.layout.split).permute(self.layout.axes)
        return made.reshape(self.shape)


def mark() -> Callable[..., Any]:
    """Return what puts the node of our own into a graph for the operator."""
    from onnx.defs import OpSchema  # noqa: PLC0415
    from onnxscript.values import Op, Opset  # noqa: PLC0415

    floats = OpSchema.FormalParameter("levels", "T"), OpSchema.FormalParameter("scale", "T")
    schema = OpSchema(
        _MARK,
        _DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter("index", "I"), *floats],
        outputs=[OpSchema.FormalParameter("values", "T")],
        type_constraints=[
            ("I", ["tensor(uint8)", "tensor(uint16)"], "indices"),
            ("T", ["tensor(float)"], "values"),
        ],
    )
    made = Op(Opset(_DOMAIN, 1), _MARK, schema)

    def translated(index: Any, levels: Any, scale: Any) -> Any:
        return made(index, levels, scale)

    return translated


def join_codebooks(model: Any, narrowest: int) -> int:
    """Replace every mark by nodes of ONNX; return how many there were.

    Indices of less than a byte become integers of ``narrowest`` bits or more. Equal tensors, those
    of tied weights and of shared codebooks, are stored once.
    """
    from onnx import TensorProto, helper  # noqa: PLC0415

    graph = model.graph
    stored: dict[tuple[Any, ...], str] = {}

    def once(name: str, values: NDArray[Any], bits: int = 0) -> str:
        key = (values.shape, str(values.dtype), bits, values.tobytes())
        if key not in stored:
            narrow = 0 < bits < 8
            stored[key] = (
                add_narrow(graph, name, values, bits) if narrow else add(graph, name, values)
            )
        return stored[key]

    marks = [node for node in graph.node if node.domain == _DOMAIN]
    for node in marks:
        index, levels, scale = (values_of(graph, name) for name in node.input)
        output = node.output[0]
        bits = next(b for b in _TYPES if b >= narrowest and len(levels) <= 1 << b)
        whole, picked = f"{output}.index", f"{output}.values"
        plain = bool((scale == 1).all())
        index_name = once(f"{whole}.stored", index, bits)
        levels_name = once(f"{output}.levels", levels)
        made = [
            helper.make_node("Cast", [index_name], [whole], to=TensorProto.INT32),
            helper.make_node("Gather", [levels_name, whole], [output if plain else picked]),
        ]
        if not plain:
            scale_name = once(f"{output}.scale", scale)
            made.append(helper.make_node("Mul", [picked, scale_name], [output]))
        place = list(graph.node).index(node)
        graph.node.remove(node)
        for offset, part in enumerate(made):
            graph.node.insert(place + offset, part)
    for entry in [entry for entry in model.opset_import if entry.domain == _DOMAIN]:
        model.opset_import.remove(entry)
    sweep(graph)
    return len(marks)
