"""Sums of few powers of two: the values that weights are moved to, and how near weights are.

PWFN (Subia-Waud and Dasmahapatra 2023) and APoT (Li et al. 2020): a product with such a value is a
few shifts and adds. All values are integers ("codes") times ``2**-finest``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import require

__all__ = ["LEAST", "MAX_CODE", "candidates", "first_deviations"]

LEAST = 2.0**-30
MAX_CODE = 1 << 24

Codes: TypeAlias = "NDArray[np.int64]"


@lru_cache(maxsize=256)
def candidates(top: int, order: int, signed: bool = False) -> Codes:
    """Return all codes of at most ``order`` powers of two, increasing, with 0.

    Args:
        top: largest magnitude, in [0, 2**24].
        order: how many powers may be added, at least 1.
        signed: powers may also be subtracted: 7 = 8 - 1 is of order 2, not 3.

    The array is shared: it cannot be written to. Cost: the number of codes times bits, ``order``
    times.
    """
    require(0 <= top <= MAX_CODE, "top", f"in [0, {MAX_CODE}]", top)
    require(order >= 1, "order", "an integer >= 1", order)
    # One power above the top is of use only where a smaller one can be subtracted.
    powers = 2 ** np.arange(top.bit_length() + signed, dtype=np.int64)
    steps = np.concatenate([powers, -powers]) if signed else powers
    found = np.zeros(1, np.int64)
    for _ in range(order):
        found = np.unique(np.concatenate([found, (found[:, None] + steps).reshape(-1)]))
        found = found[np.abs(found) <= 2 * top]
    found = found[(found >= 0) & (found <= top)]
    codes = np.concatenate([-found[:0:-1], found])
    codes.setflags(write=False)
    return codes


def first_deviations(
    values: NDArray[np.float32], spread: float = 0.0025, largest: float = 0.05
) -> NDArray[np.float32]:
    """Return how uncertain each weight of a tensor is taken to be: little beside powers of two.

    The product of the relative distances to the powers of two around a weight is 0 at them and
    largest, 1/8, at 4/3 of them. It is scaled so that its 75th percentile over the weights that
    are not zero is ``spread``, and clipped to [2**-30, ``largest``]. Zeros, and tensors of exact
    powers of two, get 2**-30. (The reference code gives NaN to a tensor with a zero.)

    Args:
        values: any shape, finite.
        spread: 75th percentile of the result.
        largest: bound of the result.

    Returns:
        float32, in the shape of ``values``.
    """
    wide = np.abs(values.astype(np.float64))
    some = wide != 0
    mantissa = np.frexp(wide)[0] * 2  # [1, 2), or 0
    ratio = 1 / mantissa[some]
    product = np.zeros_like(wide)
    product[some] = (2 * ratio - 1) * (1 - ratio)
    scale = float(np.quantile(product[some], 0.75)) if bool(some.any()) else 0.0
    if scale > 0:
        product *= spread / scale
    else:
        product[...] = 0
    return np.clip(product, LEAST, largest).astype(np.float32)
