"""SPEC.md 4: from the bytes of a body to symbols."""

from dataclasses import dataclass

from .fields import Bytes, need
from .mix import mix
from .rans import rans

PER_BYTE = {1: 8, 2: 2**15, 3: 2**11}  # symbols


@dataclass(frozen=True)
class Layout:
    rows: int
    columns: int
    taps: int = 1
    width: int = 0


def constant(source, layout):
    return [source.symbol()] * (layout.rows * layout.columns)


def raw(source, layout):
    lowest, width = source.symbol(), source.byte()
    need(1 <= width <= 32, "a width is out of bounds")
    found = [lowest + field for field in source.fields(layout.rows * layout.columns, width)]
    need(max(found) < 2**31, "a symbol is beyond 32 bits")
    return found


def planes(source, layout):
    need(2 <= layout.columns <= 8, "planes of a matrix that is not bytes of values")
    columns = []
    for _ in range(layout.columns):
        length, number = divmod(source.varint(), 8)
        need(number in (0, 1, 2), "a plane has a codec that planes may not have")
        columns.append(symbols(number, source.take(length), Layout(1, layout.rows)))
        need(all(0 <= value <= 255 for value in columns[-1]), "a plane holds what is no byte")
    return [column[row] for row in range(layout.rows) for column in columns]


ALONE = {0: constant, 1: raw, 2: rans, 4: planes}


def matrices(number, data, layouts):
    """Return the symbols of each matrix in a body, row by row."""
    need(number in (*ALONE, 3), f"codec {number} is unknown. A newer reader may know it.")
    total = sum(layout.rows * layout.columns for layout in layouts)
    need(total <= PER_BYTE.get(number, 2**62) * len(data), "more symbols than bytes allow")
    source = Bytes(data)
    if number == 3:
        return mix(source, layouts)
    need(len(layouts) == 1, "matrices share a body of a codec that does not join")
    found = ALONE[number](source, layouts[0])
    source.end()
    return [found]


def symbols(number, data, layout):
    """Return the symbols of a body with one matrix."""
    return matrices(number, data, [layout])[0]
