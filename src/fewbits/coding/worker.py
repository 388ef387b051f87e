"""The worker process: reads tasks from its input, answers on its output, ends when that ends.

A message is the number of its fields, then each field with its length before it: u64, little
endian. The answer begins with ``ok``, or with ``error``, the type and the text. Nothing is
unpickled, and nothing is imported but numpy and this package's coder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import IO

from .tasks import DecodeTask, EncodeTask

__all__ = ["receive", "send", "serve"]

KINDS = {task.kind: task for task in (EncodeTask, DecodeTask)}


def send(stream: IO[bytes], fields: Sequence[bytes]) -> None:
    """Write one message."""
    stream.write(len(fields).to_bytes(8, "little"))
    for field in fields:
        stream.write(len(field).to_bytes(8, "little"))
        stream.write(field)
    stream.flush()


def receive(stream: IO[bytes]) -> list[bytes]:
    """Read one message; EOFError where the stream ends."""
    return [_take(stream, _number(stream)) for _ in range(_number(stream))]


def serve() -> None:
    """Answer every task until there are no more."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not get among the answers
        while True:
            try:
                kind, *fields = receive(sys.stdin.buffer)
                send(out, _answer(kind, fields))
            except (EOFError, BrokenPipeError):  # whoever asked has gone
                os._exit(0)


def _answer(kind: bytes, fields: Sequence[bytes]) -> list[bytes]:
    try:
        return [b"ok", *KINDS[kind].perform(fields)]
    except BaseException as error:  # a panic of the coder's library is no Exception
        message = str(error).encode(errors="backslashreplace")
        return [b"error", type(error).__name__.encode(), message]


def _number(stream: IO[bytes]) -> int:
    return int.from_bytes(_take(stream, 8), "little")


def _take(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data
