"""Keep the process near the memory that is alive.

Every suspended pass runs in a thread of its own, and glibc gives each thread its own heap: what one
pass frees no other can use, so that the process grows to more than twice its live tensors. Tensors
that are mapped by themselves go back to the system when they are freed. The setting holds for the
whole process, so it is for programs to make (the command line does), not for a library call.
"""

from __future__ import annotations

import ctypes

__all__ = ["map_large_tensors"]

_M_MMAP_THRESHOLD = -3  # of <malloc.h>
_LARGE = 1 << 20


def map_large_tensors() -> bool:
    """Have the C library map tensors of a MiB and more by themselves; False where it cannot."""
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE))
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
