"""Bounds of CPU time that hold on slow and on busy machines too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["within"]

YARDSTICK = 0.05  # CPU seconds of `_yardstick` on an idle machine of 2025


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block takes more CPU time than ``seconds``, or its like on a slower machine.

    A busy neighbour makes a core half as fast or worse, which CPU seconds do not tell. So a block
    that takes too long is judged by how long a fixed piece of work takes right after it.
    """
    begin = time.process_time()
    yield
    spent = time.process_time() - begin
    if spent >= seconds:
        slower = max(1.0, _yardstick() / YARDSTICK)
        assert spent < seconds * slower, (
            f"{spent:.2f} CPU seconds, {seconds} allowed x {slower:.2f}"
        )


def _yardstick() -> float:
    begin = time.process_time()
    total = 0
    for number in range(2_000_000):
        total ^= number
    return time.process_time() - begin
