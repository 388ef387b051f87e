"""Processors, and the forms of 8-bit weights that they multiply rightly in onnxruntime.

On x86 without VNNI its kernels for unsigned inputs and signed weights add two products in 16 bits
(``vpmaddubsw``), and what does not fit is cut off. Unsigned weights go to other kernels, which
widen first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["PROCESSORS", "overflows_here", "pairs_may_overflow"]

PROCESSORS = ("any", "vnni")
_PAIR = 128  # 255 * 128 fits in 16 bits, 255 * 129 does not


def pairs_may_overflow(index: Tensor) -> bool:
    """Whether two products of 8-bit inputs with signed weights can exceed 16 bits.

    Which weights meet is the kernel's affair, so any two of one neuron may. Of two of unlike sign
    the products take from each other.

    Args:
        index: integers, a neuron for each entry of the first axis.
    """
    rows = index.reshape(len(index), -1).double()
    if not rows.numel():
        return False
    pair = min(2, rows.shape[1])
    sums = (side.topk(pair, dim=1).values.clamp_min(0).sum(1).amax() for side in (rows, -rows))
    return any(float(total) > _PAIR for total in sums)


def overflows_here() -> bool | None:
    """Whether onnxruntime cuts off sums of products on this processor; None if it is absent."""
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError:
        return None
    size = 32
    inputs, weights = np.full((size, size), 255, np.uint8), np.full((size, size), 127, np.int8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        _product(weights), options, providers=["CPUExecutionProvider"]
    )
    made = session.run(None, {"inputs": inputs})[0]
    return not bool((made == size * 255 * 127).all())


def _product(weights: np.ndarray[Any, Any]) -> bytes:
    """Return a graph that multiplies unsigned ``inputs`` with these weights."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    inputs = helper.make_tensor_value_info("inputs", TensorProto.UINT8, weights.shape)
    sums = helper.make_tensor_value_info("sums", TensorProto.INT32, weights.shape)
    node = helper.make_node("MatMulInteger", ["inputs", "weights"], ["sums"])
    held = [numpy_helper.from_array(weights, "weights")]
    graph = helper.make_graph([node], "product", [inputs], [sums], held)
    opset = [helper.make_opsetid("", 13)]
    made: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return made
