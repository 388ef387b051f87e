"""Linear systems in integers: the one answer that every machine agrees on."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["solve_rounded"]


def solve_rounded(matrix: Sequence[Sequence[int]], right: Sequence[int]) -> list[int]:
    """Return ``floor(x + 1/2)`` of the exact x with ``matrix @ x = right``.

    ``matrix`` is symmetric, positive definite, of integers of any size. Fraction-free elimination
    (Bareiss 1968): every division is exact. Cost: n**3 / 3 products of long integers.
    """
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    before = 1
    for place in range(size - 1):
        pivot = rows[place][place]
        head = rows[place]
        for row in rows[place + 1 :]:
            factor = row[place]
            row[place + 1 :] = [
                (pivot * value - factor * above) // before
                for value, above in zip(row[place + 1 :], head[place + 1 :], strict=True)
            ]
        before = pivot
    return _back(rows)


def _back(rows: list[list[int]]) -> list[int]:
    """Substitute backwards over the common denominator, the determinant."""
    size = len(rows)
    whole = rows[-1][size - 1] if size else 1
    scaled = [0] * size
    for place in range(size - 1, -1, -1):
        row = rows[place]
        known = sum(row[other] * scaled[other] for other in range(place + 1, size))
        scaled[place] = (whole * row[size] - known) // row[place]
    return [(2 * value + whole) // (2 * whole) for value in scaled]
