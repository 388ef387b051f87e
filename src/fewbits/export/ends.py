"""Where integers end in an ONNX graph: convolutions that onnxruntime computes in floats.

It has an integer kernel for a convolution whose input and weight are 8-bit integers and whose
output goes to one quantizer: directly, or through nodes that it can do after the quantizer.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from .graph import maker_of, readers_of, values_of

__all__ = ["float_ends", "float_gemms"]

# Nodes that move or choose values: a quantizer may as well come before.
_MOVES = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_CUTS = ("Clip", "Relu")
_CLOSE = 1e-7  # onnxruntime's tolerance of a bound: the epsilon of float32


def float_ends(model: Any) -> Counter[str]:
    """Count convolutions of 8-bit integers whose output is in floats, by the reason.

    Reasons are "open" (no quantizer follows), "shared" (one does, and something else reads the
    same values in floats) and "cut" (a Clip stands between, and is narrower than the quantizer's
    type). The network's own output does not count.
    """
    graph = model.graph
    given = {output.name for output in graph.output}
    found: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type == "Conv" and _whole(graph, node) and node.output[0] not in given:
            found[_reason(graph, node.output[0], given)] += 1
    del found[""]
    return found


def float_gemms(model: Any) -> int:
    """Count linear layers of 8-bit integers that are Gemm nodes: onnxruntime unpacks these."""
    graph = model.graph
    return sum(node.op_type == "Gemm" and _whole(graph, node) for node in graph.node)


def _whole(graph: Any, node: Any) -> bool:
    makers = [maker_of(graph, name) for name in node.input[:2]]
    if any(maker is None or maker.op_type != "DequantizeLinear" for maker in makers):
        return False
    weight = values_of(graph, makers[1].input[0])
    return weight is not None and weight.dtype == np.int8


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
            return "" if all(_swallowed(graph, cut, node) for cut in cuts) else "cut"
        if node.op_type in _CUTS and not moved:
            cuts.append(node)
        elif node.op_type in _MOVES:
            moved = True
        else:
            return "open"
        name = node.output[0]


def _swallowed(graph: Any, cut: Any, quantizer: Any) -> bool:
    """Whether the quantizer's type has no values beyond those of the Clip or Relu."""
    step, zero = (values_of(graph, name) for name in quantizer.input[1:3])
    if step is None or zero is None:
        return False
    bounds = np.iinfo(zero.dtype)
    least, most = ((bound - int(zero)) * float(step) for bound in (bounds.min, bounds.max))
    low, high = 0.0, math.inf
    if cut.op_type == "Clip":
        low, high = _bound(graph, cut, 1, -math.inf), _bound(graph, cut, 2, math.inf)
    return low <= least + _CLOSE and most <= high + _CLOSE


def _bound(graph: Any, clip: Any, place: int, absent: float) -> float:
    name = clip.input[place] if len(clip.input) > place else ""
    if not name:
        return absent
    value = values_of(graph, name)
    return -absent if value is None else float(value)  # what is not known may be narrow
