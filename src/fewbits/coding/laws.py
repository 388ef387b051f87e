"""The law of a symbol around its prediction: a logistic distribution, as a table of integers.

Scales are classes: class j stands for the mean magnitude ``2**((j - 17) / 3)`` of the error. The
spread of class j is that of the logistic law which, rounded to integers, has this magnitude.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSES", "CUMULATIVE", "FLOOR", "SPREADS", "THRESHOLDS", "WHOLE", "law_table"]

CLASSES = 32
WHOLE = 1 << 20
FLOOR = 64  # of WHOLE: what the law denies still costs no more than 14 bits
# WHOLE / (1 + 4**-z) at z = i / 8
# fmt: off
CUMULATIVE = np.array(
    (
        524288, 569601, 614242, 657578, 699051, 738201, 774684, 808275, 838861, 866431, 891058,
        912876, 932068, 948841, 963421, 976032, 986895, 996219, 1004196, 1011004, 1016801,
        1021727, 1025906, 1029447, 1032444, 1034977, 1037117, 1038924, 1040448, 1041732, 1042815,
        1043728, 1044496, 1045143, 1045688, 1046146, 1046532, 1046857, 1047130, 1047360, 1047553,
        1047716, 1047852, 1047967, 1048064, 1048146, 1048214, 1048272, 1048320, 1048361, 1048395,
        1048424, 1048448, 1048468, 1048485, 1048500, 1048512, 1048522, 1048531, 1048538, 1048544,
        1048549, 1048553, 1048557, 1048560,
    ),
    np.int64,
)
# in 1/256 of a level
SPREADS = np.array(
    (
        38, 41, 43, 45, 48, 52, 56, 60, 65, 72, 80, 90, 103, 120, 143, 173, 213, 263, 328, 411,
        516, 648, 815, 1026, 1292, 1627, 2049, 2581, 3252, 4096, 5161, 6502,
    ),
    np.int64,
)
# between the classes, in 1/16384 of a level
THRESHOLDS = np.array(
    (
        362, 456, 575, 724, 912, 1149, 1448, 1825, 2299, 2896, 3649, 4598, 5793, 7298, 9195,
        11585, 14596, 18390, 23170, 29193, 36781, 46341, 58386, 73562, 92682, 116772, 147123,
        185364, 233544, 294247, 370728,
    ),
    np.int64,
)
# fmt: on


def law_table(size: int) -> NDArray[np.int64]:
    """Return weights (places * CLASSES, size) of the symbols 0 to ``size - 1``.

    Row ``place * CLASSES + j`` is for scale class j around ``place / 4 - 1``; there are
    ``4 * size + 5`` places. The outermost symbols take the tails.
    """
    places = np.arange(4 * size + 5).reshape(-1, 1, 1) - 4
    edges = 4 * np.arange(size - 1) + 2
    below = _cumulative(edges - places, SPREADS.reshape(1, -1, 1))
    ends = np.zeros((*below.shape[:2], 1), np.int64)
    table = np.diff(np.concatenate([ends, below, ends + WHOLE], axis=2), axis=2)
    return table.reshape(-1, size) + FLOOR


def _cumulative(quarters: NDArray[np.int64], spreads: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return WHOLE times the distribution function, ``quarters`` of a level off the middle."""
    place = (np.abs(quarters) << 17) // spreads
    at = np.minimum(place >> 8, CUMULATIVE.size - 2)
    rise = CUMULATIVE[at + 1] - CUMULATIVE[at]
    value = np.where(
        place >> 8 < CUMULATIVE.size - 1, CUMULATIVE[at] + (rise * (place & 255) >> 8), WHOLE
    )
    return np.where(quarters >= 0, value, WHOLE - value)
