"""Layers of an ONNX graph that onnxruntime computes in floats, though weights are 8-bit integers.

It has an integer kernel for a convolution whose input and weight are 8-bit integers and whose
output goes to one quantizer: directly, or through nodes that it can do after the quantizer.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from .graph import CUTS, cuts_nothing, maker_of, readers_of, values_of

__all__ = ["float_convs", "float_gemms"]

# Nodes that move or choose values: a quantizer may as well come before.
_MOVES = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def float_convs(model: Any) -> Counter[str]:
    """Count convolutions with weights of 8 bits that are computed in floats, by the reason.

    Reasons are "read" (what reaches them is not quantized), and of their output "open" (no
    quantizer follows), "shared" (one does, and something else reads the same values in floats) and
    "cut" (a Clip stands between, and is narrower than the quantizer's type). A convolution that
    gives the network's own output counts only as "read".
    """
    graph = model.graph
    given = {output.name for output in graph.output}
    found: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type != "Conv" or not _narrow(graph, node):
            continue
        if not _dequantized(graph, node.input[0]):
            found["read"] += 1
        elif node.output[0] not in given:
            found[_reason(graph, node.output[0], given)] += 1
    del found[""]
    return found


def float_gemms(model: Any) -> int:
    """Count linear layers of 8-bit integers that are Gemm nodes: onnxruntime unpacks these."""
    graph = model.graph
    gemms = [node for node in graph.node if node.op_type == "Gemm"]
    return sum(_narrow(graph, node) for node in gemms)


def _narrow(graph: Any, node: Any) -> bool:
    """Whether the weight is a tensor of 8-bit integers."""
    maker = maker_of(graph, node.input[1])
    if maker is None or maker.op_type != "DequantizeLinear":
        return False
    weight = values_of(graph, maker.input[0])
    return weight is not None and weight.dtype in (np.int8, np.uint8)


def _dequantized(graph: Any, name: str) -> bool:
    while (maker := maker_of(graph, name)) is not None and maker.op_type in _MOVES:
        name = maker.input[0]
    return maker is not None and maker.op_type == "DequantizeLinear"


def _reason(graph: Any, name: str, given: set[str]) -> str:
    """Return why the chain of nodes from ``name`` on ends in floats; "" where it does not."""
    cuts: list[Any] = []
    moved = False
    while True:
        readers = readers_of(graph, name)
        if len(readers) != 1 or name in given:
            quantized = any(reader.op_type == "QuantizeLinear" for reader in readers)
            return "shared" if quantized and not moved else "open"
        node = readers[0]
        if node.op_type == "QuantizeLinear":
            return "" if all(cuts_nothing(graph, cut, node) for cut in cuts) else "cut"
        if node.op_type in CUTS and not moved:
            cuts.append(node)
        elif node.op_type in _MOVES:
            moved = True
        else:
            return "open"
        name = node.output[0]
