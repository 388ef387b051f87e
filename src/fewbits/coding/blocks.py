"""``blocks``: runs of rows, each coded on its own by the codec that suits it.

For very large matrices: blocks are encoded and decoded side by side, and the bounds of a codec
on the symbols of a stream hold for each block. How a matrix is cut follows from its size alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import CorruptFileError
from .choose import decode_stream, encode_stream, name_of, stream_work
from .codec import CODECS, Symbols
from .cut import block_rows
from .narrow import narrow
from .varint import Cursor, varint
from .work import UNLIMITED, Work, total

__all__ = ["Blocks", "cut", "pack_blocks", "unpack_blocks"]

BLOCK = 2000  # units of work


class Blocks:
    """Runs of rows, each a stream of its own."""

    number = 9
    summary = "runs of rows, each on its own"

    def encode(self, symbols: Symbols) -> bytes | None:
        """Return the coded blocks one after the other; None for a matrix that is not cut."""
        pieces = cut(symbols)
        if len(pieces) == 1:
            return None
        return pack_blocks(len(pieces[0]), (encode_stream(piece, "smallest") for piece in pieces))

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return the work of all blocks, and of putting them together."""
        blocks = unpack_blocks(data, rows)
        works = (stream_work(name, body, height, columns) for name, body, height in blocks)
        return total(works) + Work(BLOCK * len(blocks) + 2 * rows * columns)

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return the matrix, in 8 or 16 bits where its symbols fit."""
        return np.concatenate(
            [
                narrow(decode_stream(name, body, height, columns, flags_per_byte))
                for name, body, height in unpack_blocks(data, rows)
            ]
        )


def cut(symbols: Symbols) -> list[Symbols]:
    """Return the blocks of a matrix, top to bottom; one if it is not to be cut."""
    height = block_rows(*symbols.shape)
    return [symbols[start : start + height] for start in range(0, len(symbols), height)]


def pack_blocks(height: int, coded: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the stream of blocks of ``height`` rows, each given as its codec and bytes."""
    out = bytearray(varint(height))
    for name, body in coded:
        out += varint(CODECS[name].number) + varint(len(body)) + body
    return bytes(out)


def unpack_blocks(data: bytes, rows: int) -> list[tuple[str, bytes, int]]:
    """Return (codec, bytes, rows) of every block; CorruptFileError for anything else."""
    cursor = Cursor(data)
    height = cursor.varint()
    # A block takes two bytes at least, so the count is checked before anything is done.
    if not (1 <= height < rows and 2 * -(-rows // height) < len(data)):
        raise CorruptFileError(f"blocks of {height} rows in {len(data)} bytes, for {rows} rows")
    found = []
    for start in range(0, rows, height):
        number, length = cursor.varint(), cursor.varint()
        if number == Blocks.number:
            raise CorruptFileError("blocks inside blocks")
        found.append((name_of(number), cursor.take(length), min(height, rows - start)))
    cursor.finish()
    return found


CODECS.register("blocks")(Blocks())
