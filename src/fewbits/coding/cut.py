"""Where very large matrices are cut, so that their parts can be coded side by side.

A part learns its laws anew. With these sizes that costs below 0.1 % of the bytes.
"""

from __future__ import annotations

__all__ = ["block_rows"]

SYMBOLS = 1 << 22  # of a block at least
ROWS = 1 << 10  # of a block at least: laws of columns are learnt from row to row
MOST = 1 << 26  # symbols of a block: what `adaptive` takes


def block_rows(rows: int, columns: int) -> int:
    """Return the rows of a block of such a matrix; ``rows`` where it is not to be cut.

    Blocks are of equal height, but for the last. The cut depends on nothing but the sizes, and no
    block would be cut again.
    """
    count = max(1, min(rows * columns // SYMBOLS, rows // ROWS))
    return min(-(-rows // count), max(1, MOST // max(1, columns)))
