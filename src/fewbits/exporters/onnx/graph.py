"""Changes of an ONNX graph that keep its function, and what is asked of its nodes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = [
    "CUTS",
    "absorb_norms",
    "add",
    "add_narrow",
    "cuts_nothing",
    "drop_cuts",
    "maker_of",
    "own_zeros",
    "pack_narrow",
    "readers_of",
    "strip",
    "sweep",
    "values_of",
]

CUTS = ("Clip", "Relu")
_CLOSE = 1e-7  # onnxruntime's tolerance of a bound: the epsilon of float32


def absorb_norms(model: Any) -> int:
    """Put each normalization after a convolution of integers into steps and bias; count them.

    ``gamma / sigma`` multiplies the step of its channel; where it is negative, the integers change
    sign. No integer is rounded anew.
    """
    graph = model.graph
    given = {output.name for output in graph.output}
    count = 0
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = maker_of(graph, norm.input[0])
        if conv is None or conv.op_type != "Conv" or len(readers_of(graph, conv.output[0])) != 1:
            continue
        weight = maker_of(graph, conv.input[1])
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        # What the network gives keeps its name and its values.
        outside = not given.isdisjoint((conv.output[0], norm.output[0]))
        if outside or len(weight.input) != 3 or len(readers_of(graph, weight.output[0])) != 1:
            continue
        if _absorb(graph, norm, conv, weight):
            count += 1
    return count


def _absorb(graph: Any, norm: Any, conv: Any, weight: Any) -> bool:
    parts = [values_of(graph, name) for name in norm.input[1:5]]
    index, step, zero = (values_of(graph, name) for name in weight.input)
    if any(part is None for part in (*parts, index, step, zero)):
        return False
    gamma, beta, mean, variance = (part.astype(np.float64) for part in parts)
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    gain = gamma / np.sqrt(variance + epsilon)
    if not gain.all():
        return False  # a channel that is constant: its step would be zero
    zero = np.broadcast_to(zero.reshape(-1), gain.shape)
    flip = gain < 0
    turned = index.astype(np.int64)
    middle = zero[flip].astype(np.int64).reshape(-1, *[1] * (index.ndim - 1))
    turned[flip] = 2 * middle - turned[flip]
    if (turned != turned.astype(index.dtype)).any():
        return False  # the lowest integer has no counterpart
    index = turned.astype(index.dtype)
    scaled = (np.broadcast_to(step.reshape(-1), gain.shape) * np.abs(gain)).astype(np.float32)
    old = values_of(graph, conv.input[2]) if len(conv.input) > 2 else np.zeros_like(gain)
    if old is None:
        return False
    bias = (beta + (old.astype(np.float64) - mean) * gain).astype(np.float32)
    name = conv.output[0]
    weight.input[0] = add(graph, f"{name}.index", index)
    weight.input[1] = add(graph, f"{name}.step", scaled)
    weight.input[2] = add(graph, f"{name}.zero", zero)
    bias_name = add(graph, f"{name}.bias", bias)
    if len(conv.input) > 2:
        conv.input[2] = bias_name
    else:
        conv.input.append(bias_name)
    _bypass(graph, norm.output[0], name)
    graph.node.remove(norm)
    sweep(graph)
    return True


def drop_cuts(model: Any) -> int:
    """Remove each Clip and Relu after a dequantizer whose levels it does not change; count them.

    A grid on the output of a ReLU is a grid on its input: of its levels none is below zero. A
    runtime would not see that what follows reads integers.
    """
    graph = model.graph
    given = {output.name for output in graph.output}
    count = 0
    for cut in [node for node in graph.node if node.op_type in CUTS]:
        maker = maker_of(graph, cut.input[0])
        if maker is None or maker.op_type != "DequantizeLinear" or cut.output[0] in given:
            continue
        if cuts_nothing(graph, cut, maker):
            _bypass(graph, cut.output[0], cut.input[0])
            graph.node.remove(cut)
            count += 1
    sweep(graph)
    return count


def pack_narrow(model: Any, narrowest: int = 4) -> int:
    """Store 8-bit integers of weights that fit as 4-bit ones, or 2-bit ones if asked; count them.

    The zero point goes: it is zero, and would need the same type.
    """
    from onnx import TensorProto, numpy_helper  # noqa: PLC0415

    graph = model.graph
    makers = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    read = {node.input[0] for node in makers}
    others = {n for node in graph.node for n in node.input[1:]}
    count = 0
    for tensor in list(graph.initializer):
        if tensor.name not in read or tensor.name in others or tensor.data_type != TensorProto.INT8:
            continue
        values = numpy_helper.to_array(tensor)
        low, high = (int(values.min()), int(values.max())) if values.size else (-128, 127)
        fits = (b for b in (2, 4) if b >= narrowest and -(1 << b - 1) <= low and high < 1 << b - 1)
        bits = next(fits, 0)
        if not bits:
            continue
        for node in makers:
            if node.input[0] == tensor.name:
                del node.input[2:]
        graph.initializer.remove(tensor)
        add_narrow(graph, tensor.name, values, bits)
        for info in list(graph.value_info):
            if info.name == tensor.name:
                graph.value_info.remove(info)
        count += 1
    sweep(graph)
    return count


def own_zeros(model: Any) -> int:
    """Give each dequantizer of a constant a zero point that no other node reads; count the new.

    onnxruntime replaces both by unsigned ones if asked (``session.x64quantprecision``), under names
    made of the old, and refuses a second layer that would make the same.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    count = 0
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        if len(node.input) < 3 or node.input[0] not in constants:
            continue
        name = node.input[2]
        if name in constants and len(readers_of(graph, name)) > 1:
            node.input[2] = add(graph, f"{node.output[0]}.zero", values_of(graph, name))
            count += 1
    return count


def strip(model: Any) -> None:
    """Remove what only tells where a node came from: it can take more bytes than the weights."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        for field in ("metadata_props", "value_info", "doc_string"):
            if field in part.DESCRIPTOR.fields_by_name:
                part.ClearField(field)


def cuts_nothing(graph: Any, cut: Any, quantizer: Any) -> bool:
    """Whether the quantizer's type has no levels that the Clip or Relu would change.

    Args:
        graph: that holds them.
        cut: one of ``CUTS``.
        quantizer: a node that quantizes, or its inverse.
    """
    known = [values_of(graph, name) for name in quantizer.input[1:3]]
    if len(known) < 2 or any(value is None or value.size != 1 for value in known):
        return False
    step, zero = known
    bounds = np.iinfo(zero.dtype)
    least, most = ((bound - zero.item()) * step.item() for bound in (bounds.min, bounds.max))
    low, high = 0.0, math.inf
    if cut.op_type == "Clip":
        low, high = _bound(graph, cut, 1, -math.inf), _bound(graph, cut, 2, math.inf)
    return bool(low <= least + _CLOSE and most <= high + _CLOSE)


def _bound(graph: Any, clip: Any, place: int, absent: float) -> float:
    name = clip.input[place] if len(clip.input) > place else ""
    if not name:
        return absent
    value = values_of(graph, name)
    return -absent if value is None else float(value)  # what is not known may be narrow


def maker_of(graph: Any, name: str) -> Any:
    """Return the node that gives ``name``; None for inputs and initializers."""
    return next((node for node in graph.node if name in node.output), None)


def readers_of(graph: Any, name: str) -> list[Any]:
    """Return the nodes that read ``name``."""
    return [node for node in graph.node if name in node.input]


def values_of(graph: Any, name: str) -> Any:
    """Return the array that ``name`` always is; None where it depends on inputs."""
    from onnx import numpy_helper  # noqa: PLC0415

    found = next((t for t in graph.initializer if t.name == name), None)
    if found is not None:
        return numpy_helper.to_array(found)
    node = maker_of(graph, name)
    if node is not None and node.op_type == "Constant":
        held = next((a.t for a in node.attribute if a.name == "value"), None)
        return None if held is None else numpy_helper.to_array(held)
    return None


def _bypass(graph: Any, name: str, other: str) -> None:
    """Let all that reads ``name`` read ``other``."""
    for node in graph.node:
        for place, read in enumerate(node.input):
            if read == name:
                node.input[place] = other


def add(graph: Any, name: str, values: Any) -> str:
    """Add an initializer, and return its name."""
    from onnx import numpy_helper  # noqa: PLC0415

    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def add_narrow(graph: Any, name: str, values: Any, bits: int) -> str:
    """Add an initializer of integers of 2 or 4 bits, signed as theirs are; return its name."""
    from onnx import TensorProto, helper  # noqa: PLC0415

    kind = getattr(TensorProto, f"{'' if values.dtype.kind == 'i' else 'U'}INT{bits}")
    several = 8 // bits  # in a byte, the first in its lowest bits
    flat = np.zeros(-(-values.size // several) * several, np.uint8)
    flat[: values.size] = values.reshape(-1).astype(np.uint8) & ((1 << bits) - 1)
    shifted = flat.reshape(-1, several) << np.arange(0, 8, bits, dtype=np.uint8)
    data = np.bitwise_or.reduce(shifted, axis=1).tobytes()
    graph.initializer.append(helper.make_tensor(name, kind, values.shape, data, raw=True))
    return name


def sweep(graph: Any) -> None:
    """Remove initializers that nothing reads."""
    read = {name for node in graph.node for name in node.input}
    read |= {output.name for output in graph.output}
    for tensor in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(tensor)
