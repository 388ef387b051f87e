"""The processes that ``torchrun`` starts for one command: they share its work, and one prints."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

__all__ = ["is_first", "launched"]


def is_first() -> bool:
    """Return whether this process prints and writes: the first, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def launched() -> Iterator[bool]:
    """Share what is done in the block with the other processes, if ``torchrun`` started several.

    Yields whether this is the first of them. Only this one prints; all raise the error of any.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or "MASTER_ADDR" not in os.environ:
        yield True
        return
    from torch import distributed  # noqa: PLC0415  (brings torch)

    from ...engine.network.distributed import shared_work  # noqa: PLC0415

    distributed.init_process_group("gloo")
    try:
        with shared_work() as ranks, _silent_unless(ranks.first):
            yield ranks.first
            ranks.exchange("end of the command", None)
    finally:
        distributed.destroy_process_group()


@contextmanager
def _silent_unless(first: bool) -> Iterator[None]:
    if first:
        yield
        return
    nowhere = io.StringIO()
    with redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
