"""Sums of few powers of two: the values to which PWFN moves weights, and initial deviations.

A product with such a value takes a few shifts and adds (PWFN, Subia-Waud and Dasmahapatra 2023;
APoT, Li et al. 2020). All values are integers ("codes") times ``2**-finest``.
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
    """Return all codes that are sums of at most ``order`` powers of two, increasing, including 0.

    Args:
        top: largest magnitude, in [0, 2**24].
        order: number of powers that may be added, at least 1.
        signed: whether powers may also be subtracted: 7 = 8 - 1 then has order 2 rather than 3.

    The array is shared and read-only. Cost: ``order`` times the number of codes times bits.
    """
    require(0 <= top <= MAX_CODE, "top", f"in [0, {MAX_CODE}]", top)
    require(order >= 1, "order", "an integer >= 1", order)
    # A power above the top helps only if a smaller one can be subtracted from it.
    powers = 2 ** np.arange(top.bit_length() + signed, dtype=np.int64)
    steps = np.concatenate([powers, -powers]) if signed else powers
    codes = np.zeros(1, np.int64)
    for _ in range(order):
        codes = np.unique(np.concatenate([codes, (codes[:, None] + steps).reshape(-1)]))
        codes = codes[np.abs(codes) <= 2 * top]
    codes = codes[(codes >= 0) & (codes <= top)]
    codes = np.concatenate([-codes[:0:-1], codes])
    codes.setflags(write=False)
    return codes


def first_deviations(
    values: NDArray[np.float32], spread: float = 0.0025, largest: float = 0.05
) -> NDArray[np.float32]:
    """Return the initial uncertainty of each weight of a tensor: small near powers of two.

    The product of the relative distances to the two powers of two around a weight is 0 at these and
    largest, 1/8, at 4/3 of the lower one. It is scaled so that its 75th percentile over nonzero
    weights is ``spread``, and clipped to [2**-30, ``largest``]. Zeros, and tensors of exact powers
    of two, get 2**-30. (The reference code gives NaN for a tensor with a zero.)

    Args:
        values: any shape, finite.
        spread: 75th percentile of the result.
        largest: bound on the result.

    Returns:
        float32, in the shape of ``values``.
    """
    wide = np.abs(values.astype(np.float64))
    nonzero = wide != 0
    mantissa = np.frexp(wide)[0] * 2  # [1, 2), or 0
    ratio = 1 / mantissa[nonzero]
    product = np.zeros_like(wide)
    product[nonzero] = (2 * ratio - 1) * (1 - ratio)
    scale = float(np.quantile(product[nonzero], 0.75)) if bool(nonzero.any()) else 0.0
    if scale > 0:
        product *= spread / scale
    else:
        product[...] = 0
    return np.clip(product, LEAST, largest).astype(np.float32)
