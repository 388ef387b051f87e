"""SPEC.md 4: from the bytes of a body to symbols."""

from dataclasses import dataclass

from .fields import Bytes, need
from .mix import mix
from .rans import rans

PER_BYTE = {1: 8, 2: 2**15, 3: 2**11, 6: 2**11, 7: 2**15}  # symbols


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


def part(source, count):
    length, number = divmod(source.varint(), 8)
    need(number in (0, 1, 2), "a part has a codec that parts may not have")
    found = symbols(number, source.take(length), Layout(1, count))
    need(all(0 <= value <= 255 for value in found), "a part holds what is no byte")
    return found


def floats(source, layout):
    need(layout.columns in (2, 4, 8), "floats of a matrix that is not bytes of floats")
    first = part(source, layout.rows)
    turned = list(first)
    for _ in range(layout.columns - 1):
        listed = [source.byte() for _ in range(source.byte())]
        need(len(listed) <= 15 and listed == sorted(set(listed)), "listed classes are wrong")
        need(set(listed) <= set(first), "a listed class has no values")
        kinds = [listed.index(byte) if byte in listed else len(listed) for byte in first]
        counts = [kinds.count(kind) for kind in range(len(listed) + 1)]
        parts = [iter(part(source, count)) if count else iter(()) for count in counts]
        turned = [256 * u + next(parts[k]) for u, k in zip(turned, kinds, strict=True)]
    top = 8 * layout.columns - 1
    values = [u // 2 + (u % 2 << top) for u in turned]
    return [byte for v in values for byte in v.to_bytes(layout.columns, "little")]


def rans_trellis(source, layout):
    return rans(source, layout, trellis=True)


ALONE = {0: constant, 1: raw, 2: rans, 4: planes, 5: floats, 7: rans_trellis}


def matrices(number, data, layouts):
    """Return the symbols of each matrix in a body, row by row."""
    need(number in (*ALONE, 3, 6), f"codec {number} is unknown. A newer reader may know it.")
    total = sum(layout.rows * layout.columns for layout in layouts)
    need(total <= PER_BYTE.get(number, 2**62) * len(data), "more symbols than bytes allow")
    source = Bytes(data)
    if number in (3, 6):
        return mix(source, layouts, trellis=number == 6)
    need(len(layouts) == 1, "matrices share a body of a codec that does not join")
    found = ALONE[number](source, layouts[0])
    source.end()
    return [found]


def symbols(number, data, layout):
    """Return the symbols of a body with one matrix."""
    return matrices(number, data, [layout])[0]
