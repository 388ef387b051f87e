"""Weights with steps for blocks of inputs as onnxruntime's operators on packed integers.

``MatMulNBits`` multiplies inputs with a weight of 2, 4 or 8 bits, ``GatherBlockQuantized`` looks
rows up in one. Integers are stored as unsigned ones around the middle of their range, which both
operators assume where no zero points are given; steps are those of the grid, for blocks of 16 to
256 inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import add, maker_of, readers_of, sweep, values_of

__all__ = ["DOMAIN", "Packed", "pack_blocks"]

DOMAIN = "com.microsoft"
_BLOCKS = {2: (128, 64, 32), 4: (256, 128, 64, 32, 16), 8: (256, 128, 64, 32, 16)}  # fast ones
_LEAF = ".parametrizations."


@dataclass
class Packed:
    """What became of the weights.

    Attributes:
        bits: weight name to the bits of its packed integers.
        products: how many nodes are MatMulNBits.
        lookups: how many nodes are GatherBlockQuantized.
        odd: weights whose grid has no zero: their integers are the odd ones, of more bits.
        left: weight name to why it is not packed.
        floats: those of ``left`` that are floats now.
    """

    bits: dict[str, int] = field(default_factory=dict)
    products: int = 0
    lookups: int = 0
    odd: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    floats: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Weight:
    """Integers (rows, columns) around zero, and the steps (rows, blocks) of blocks of ``size``."""

    integers: NDArray[np.int64]
    steps: NDArray[np.float32]
    size: int
    bits: int


def pack_blocks(model: Any, accuracy_level: int) -> Packed:
    """Replace products with dequantized weights, and look-ups in them, where all readers allow it.

    A look-up in a table that cannot be packed reads floats: unpacking all of it in every call would
    take longer than the rest.
    """
    graph, found = model.graph, Packed()
    shared: dict[bytes, tuple[str, str]] = {}
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        index = values_of(graph, node.input[0])
        if index is None:
            continue  # an input's
        name = _weight_name(node.input[0])
        readers = list(_readers(graph, node.output[0]))
        weight, why = _weight(graph, node, index, readers)
        if weight is None:
            found.left[name] = why
            if any(reader.op_type == "Gather" for reader, _ in readers):
                found.floats.append(name)
                _unpack(graph, node, index)
            continue
        found.bits[name] = weight.bits
        if (weight.integers % 2 != 0).all():
            found.odd.append(name)
        names = _stored(graph, name, weight, shared)
        for reader, between in readers:
            if reader.op_type == "Gather":
                _look_up(graph, reader, weight, names)
                found.lookups += 1
            else:
                _multiply(graph, reader, weight, names, accuracy_level)
                found.products += 1
            if between is not None:
                graph.node.remove(between)
        graph.node.remove(node)
    sweep(graph)
    if found.bits:
        model.opset_import.add(domain=DOMAIN, version=1)
    return found


def _weight_name(index: str) -> str:
    """Return the name of the weight whose integers a parametrization holds as ``index``."""
    path, _, rest = index.partition(_LEAF)
    return f"{path}.{rest.partition('.')[0]}".lstrip(".")


def _readers(graph: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Yield what reads ``name``, and the Transpose of both axes between them, or None."""
    for reader in readers_of(graph, name):
        axes = next((list(a.ints) for a in reader.attribute if a.name == "perm"), None)
        if reader.op_type == "Transpose" and axes == [1, 0]:
            yield from ((further, reader) for further in readers_of(graph, reader.output[0]))
        else:
            yield reader, None


def _weight(
    graph: Any, node: Any, index: NDArray[Any], readers: list[tuple[Any, Any]]
) -> tuple[_Weight | None, str]:
    """Return the weight in blocks; None, and why, if a reader or a size does not allow it."""
    if index.ndim != 2:
        return None, "convolutions have no such operator"
    if not all(_fits(reader, between, node.output[0]) for reader, between in readers):
        return None, "something other than a linear layer reads it"
    zero = values_of(graph, node.input[2]) if len(node.input) > 2 else np.zeros(1, np.int64)
    steps = values_of(graph, node.input[1]).astype(np.float32).reshape(-1, 1)
    rows, columns = index.shape
    group = next((a.i for a in node.attribute if a.name == "block_size"), 0)
    if group:
        steps = steps.reshape(rows, -1)
        zero = np.repeat(zero.reshape(rows, -1), group, 1)
    else:
        steps, zero = np.broadcast_to(steps, (rows, 1)), zero.reshape(-1, 1)
    integers = index.astype(np.int64) - zero
    bits = _width(integers)
    if bits == 0:
        return None, "its integers take more than 8 bits"
    if bits == 8 and any(_in_integers(graph, reader) for reader, _ in readers):
        return None, "its inputs have 8 bits too, for which there are integer kernels"
    whole = any(reader.op_type == "Gather" for reader, _ in readers)
    size, bits = _block(columns, group, bits, whole=whole)
    if size == 0:
        return None, f"its {group or columns} inputs with one step are no multiple of 16"
    return _Weight(integers, _spread(steps, group or columns, columns, size), size, bits), ""


def _fits(reader: Any, between: Any, name: str) -> bool:
    """Whether an operator on packed integers can stand for ``reader``."""
    settings = {a.name: a for a in reader.attribute}
    given = name if between is None else between.output[0]
    if reader.op_type == "Gather":
        axis = settings["axis"].i if "axis" in settings else 0
        return between is None and reader.input[0] == given and axis == 0
    if list(reader.input[:2]).count(given) != 1 or reader.input[1] != given:
        return False
    if reader.op_type == "MatMul":
        return between is not None
    plain = all(settings[key].f == 1 for key in ("alpha", "beta") if key in settings)
    turned = "transB" in settings and settings["transB"].i == 1
    untouched = "transA" not in settings or settings["transA"].i == 0
    return reader.op_type == "Gemm" and plain and untouched and turned == (between is None)


def _in_integers(graph: Any, reader: Any) -> bool:
    """Whether it has a kernel for inputs of 8 bits; onnxruntime unpacks the weight of a Gemm."""
    maker = maker_of(graph, reader.input[0])
    return reader.op_type == "MatMul" and maker is not None and maker.op_type == "DequantizeLinear"


def _width(integers: NDArray[np.int64]) -> int:
    """Return the fewest of 2, 4 or 8 bits that hold them; 0 where none do."""
    low, high = (int(integers.min()), int(integers.max())) if integers.size else (0, 0)
    return next((b for b in _BLOCKS if -(1 << (b - 1)) <= low and high < 1 << (b - 1)), 0)


def _block(columns: int, group: int, bits: int, *, whole: bool) -> tuple[int, int]:
    """Return the size of blocks and the bits that take the fewest bytes; sizes of 0 for none.

    Args:
        columns: of the weight.
        group: of them, with one step each; 0 for one step for all.
        bits: that the integers need.
        whole: whether blocks must divide the columns.
    """
    sizes = [
        (size, wide)
        for wide in _BLOCKS
        if wide >= bits
        for size in _BLOCKS[wide]
        if (group or (columns if whole else size)) % size == 0
    ]
    taken = {pair: -(-columns // pair[0]) * (pair[0] * pair[1] + 32) for pair in sizes}
    return min(sizes, key=taken.__getitem__, default=(0, bits))


def _spread(steps: NDArray[np.float32], group: int, columns: int, size: int) -> NDArray[np.float32]:
    """Return the step of every block of ``size`` columns, of steps for groups of them."""
    first = np.arange(0, columns, size)
    return np.ascontiguousarray(steps[:, first // group])


def _stored(
    graph: Any, name: str, weight: _Weight, shared: dict[bytes, tuple[str, str]]
) -> tuple[str, str]:
    """Return the names of the packed integers and the steps, stored once for tied weights."""
    packed = _bytes(weight)
    key = packed.tobytes() + weight.steps.tobytes()
    if key not in shared:
        shared[key] = (
            add(graph, f"{name}.packed", packed),
            add(graph, f"{name}.steps", weight.steps),
        )
    return shared[key]


def _bytes(weight: _Weight) -> NDArray[np.uint8]:
    """Return (rows, blocks, bytes of a block): the first integers in the lowest bits."""
    rows, columns = weight.integers.shape
    bits, size, middle = weight.bits, weight.size, 1 << (weight.bits - 1)
    blocks = -(-columns // size)
    values = np.full((rows, blocks * size), middle, np.uint8)
    values[:, :columns] = weight.integers + middle
    parts = values.reshape(rows, blocks, -1, 8 // bits)
    made = np.zeros(parts.shape[:3], np.uint8)
    for place in range(8 // bits):
        made |= parts[..., place] << np.uint8(bits * place)
    return made


def _multiply(
    graph: Any, reader: Any, weight: _Weight, names: tuple[str, str], accuracy_level: int
) -> None:
    rows, columns = weight.integers.shape
    bias = list(reader.input[2:3]) if reader.op_type == "Gemm" else []
    inputs = [reader.input[0], *names, *(["", "", *bias] if bias else [])]
    _replace(
        graph,
        reader,
        "MatMulNBits",
        inputs,
        K=columns,
        N=rows,
        bits=weight.bits,
        block_size=weight.size,
        accuracy_level=accuracy_level,
    )


def _look_up(graph: Any, reader: Any, weight: _Weight, names: tuple[str, str]) -> None:
    packed, steps = names
    shape = add(graph, f"{reader.output[0]}.shape", np.array([len(weight.integers), -1], np.int64))
    table = f"{reader.output[0]}.table"
    _insert(graph, reader, "Reshape", [packed, shape], table)
    _replace(
        graph,
        reader,
        "GatherBlockQuantized",
        [table, reader.input[1], steps],
        bits=weight.bits,
        block_size=weight.size,
        gather_axis=0,
        quantize_axis=1,
    )


def _replace(graph: Any, node: Any, kind: str, inputs: list[str], **settings: Any) -> None:
    from onnx import helper  # noqa: PLC0415

    made = helper.make_node(
        kind, inputs, list(node.output), name=node.name, domain=DOMAIN, **settings
    )
    node.CopyFrom(made)


def _insert(graph: Any, before: Any, kind: str, inputs: list[str], output: str) -> None:
    from onnx import helper  # noqa: PLC0415

    graph.node.insert(list(graph.node).index(before), helper.make_node(kind, inputs, [output]))


def _unpack(graph: Any, node: Any, index: NDArray[Any]) -> None:
    """Replace a dequantizer of constants by what it gives."""
    steps, zero = (values_of(graph, name) for name in node.input[1:3])
    group = next((a.i for a in node.attribute if a.name == "block_size"), 0)
    if group:
        steps, zero = (np.repeat(part, group, 1) for part in (steps, zero))
    else:
        steps, zero = (part.reshape(-1, *[1] * (index.ndim - 1)) for part in (steps, zero))
    values = (index.astype(np.float32) - zero.astype(np.float32)) * steps
    output = node.output[0]
    graph.node.remove(node)
    add(graph, output, values.astype(np.float32))
