"""What a worker can be asked to do: encode one matrix, or decode one. Tasks as fields of bytes.

A task runs anywhere with the same result. A large matrix is several tasks, one to a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .blocks import cut, pack_blocks, unpack_blocks
from .choose import EFFORTS, SLOW, decode_stream, encode_stream, is_cut
from .codec import CODECS, Symbols
from .narrow import narrow
from .work import UNLIMITED

__all__ = [
    "DecodeTask",
    "EncodeTask",
    "cost",
    "decode_tasks",
    "encode_tasks",
    "encoding_cost",
    "join_decoded",
    "join_encoded",
]

SLOWER = 8  # times as long as the others, at least, take the codecs that learn


@dataclass(frozen=True, eq=False)
class EncodeTask:
    """Encode ``symbols``; ``quick``: without what is slow, and not as blocks."""

    kind: ClassVar[bytes] = b"encode"

    label: str
    symbols: Symbols
    effort: str
    quick: bool = False

    @property
    def size(self) -> int:
        """Symbols of the matrix."""
        return self.symbols.size

    def run(self) -> tuple[str, bytes]:
        """Return the codec and the bytes."""
        return encode_stream(self.symbols, self.effort, quick=self.quick)

    def request(self) -> list[bytes]:
        """Return the task as fields."""
        return [self.effort.encode(), b"1" if self.quick else b"", *_matrix_fields(self.symbols)]

    @classmethod
    def perform(cls, fields: Sequence[bytes]) -> list[bytes]:
        """Do what a request asks, and return the result as fields."""
        effort, quick, *matrix = fields
        task = cls("", _matrix(matrix), effort.decode(), bool(quick))
        name, data = task.run()
        return [name.encode(), data]

    def result(self, fields: Sequence[bytes]) -> tuple[str, bytes]:
        """Return the result that :meth:`perform` gave."""
        name, data = fields
        return name.decode(), data


@dataclass(frozen=True, eq=False)
class DecodeTask:
    """Decode ``data`` with ``codec`` to a matrix of ``rows`` by ``columns``, already bounded."""

    kind: ClassVar[bytes] = b"decode"

    label: str
    codec: str
    data: bytes
    rows: int
    columns: int
    flags_per_byte: int = UNLIMITED

    @property
    def size(self) -> int:
        """Symbols of the matrix."""
        return self.rows * self.columns

    def run(self) -> Symbols:
        """Return the matrix."""
        return decode_stream(self.codec, self.data, self.rows, self.columns, self.flags_per_byte)

    def request(self) -> list[bytes]:
        """Return the task as fields."""
        numbers = (self.rows, self.columns, self.flags_per_byte)
        return [self.codec.encode(), self.data, *(b"%d" % number for number in numbers)]

    @classmethod
    def perform(cls, fields: Sequence[bytes]) -> list[bytes]:
        """Do what a request asks, and return the result as fields."""
        codec, data, *numbers = fields
        return _matrix_fields(cls("", codec.decode(), data, *map(int, numbers)).run())

    def result(self, fields: Sequence[bytes]) -> Symbols:
        """Return the matrix, in 8 or 16 bits where its symbols fit."""
        return _matrix(fields)


def encode_tasks(label: str, symbols: Symbols, effort: str) -> list[EncodeTask]:
    """Return the tasks whose results :func:`join_encoded` joins to those of ``encode_stream``."""
    if not is_cut(EFFORTS[effort], *symbols.shape):
        return [EncodeTask(label, symbols, effort)]
    blocks = [EncodeTask(label, piece, effort) for piece in cut(symbols)]
    return [EncodeTask(label, symbols, effort, quick=True), *blocks]


def join_encoded(
    tasks: Sequence[EncodeTask], results: Sequence[tuple[str, bytes]]
) -> tuple[str, bytes]:
    """Return codec and bytes of the first task's matrix."""
    whole, *blocks = results
    if not blocks:
        return whole
    joined = pack_blocks(len(tasks[1].symbols), blocks)
    return ("blocks", joined) if len(joined) < len(whole[1]) else whole


def decode_tasks(
    label: str,
    codec: str,
    data: bytes,
    rows: int,
    columns: int,
    *,
    flags_per_byte: int = UNLIMITED,
) -> list[DecodeTask]:
    """Return the tasks whose results, one below the other, are the matrix that ``data`` codes."""
    if codec != "blocks":
        return [DecodeTask(label, codec, data, rows, columns, flags_per_byte)]
    return [
        DecodeTask(label, name, body, height, columns, flags_per_byte)
        for name, body, height in unpack_blocks(data, rows)
    ]


def join_decoded(results: Sequence[Symbols]) -> Symbols:
    """Return the matrix of which these are the blocks, top to bottom."""
    if len(results) == 1:
        return results[0]
    return np.concatenate([narrow(block) for block in results])


def cost(number: int, symbols: int) -> int:
    """Return about how long decoding takes by the codec of this number, which may be unknown.

    In symbols of a fast codec, some 15 nanoseconds each.
    """
    slow = {CODECS[name].number for name in (*SLOW, "blocks")}
    return symbols * (SLOWER if number in slow else 1)


def encoding_cost(effort: str, symbols: int) -> int:
    """Return about how long encoding takes, in the same unit: all codecs are tried."""
    return symbols * SLOWER * (SLOWER if EFFORTS[effort].largest_learning else 1)


def _matrix_fields(symbols: Symbols) -> list[bytes]:
    small = np.ascontiguousarray(narrow(symbols) if symbols.size else symbols)
    rows, columns = small.shape
    return [small.dtype.str.encode(), b"%d" % rows, b"%d" % columns, small.tobytes()]


def _matrix(fields: Sequence[bytes]) -> Symbols:
    dtype, rows, columns, values = fields
    found: Symbols = np.frombuffer(values, dtype.decode()).reshape(int(rows), int(columns))
    return found
