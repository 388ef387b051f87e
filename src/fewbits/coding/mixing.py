"""Chances of flags: states of counts, mixed in the logistic domain with weights that are learnt.

Logistic mixing is Mahoney's (PAQ, 2005): estimates are added as logarithms of odds, and the
weights follow the gradient of the coded bits. All arithmetic is in integers. Tables hold rounded
logarithms and exponentials; none lies so near a half that a machine could round it otherwise (a
test looks).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np

__all__ = ["INPUTS", "LIMIT", "REACH", "UNIT", "Flag", "Take", "mixer", "tables", "weight_set"]

INPUTS = 5
LIMIT = 255  # events that a state counts: then both counts are halved
UNIT = 1 << 12  # of a chance
REACH = 2047  # of the logarithm of odds, in 1/256
START = 1 << 14  # of a weight: a quarter
PATIENCE = 1024  # flags after which weights move at their slowest

Take: TypeAlias = Callable[[int, int], int]
Flag: TypeAlias = Callable[[list[int], int, int, int, int, int, int], int]


class Tables(NamedTuple):
    """What mixing looks up. A state is ``256 * zeros + ones``, together at most 255.

    Attributes:
        stretch: logarithm of odds of a state, in 1/256.
        squash: chance of 1 in 1/4096, by logarithm of odds from ``-REACH`` on.
        after: the state after a 0, and after a 1.
    """

    stretch: list[int]
    squash: list[int]
    after: tuple[list[int], list[int]]


@cache
def tables() -> Tables:
    """Return the tables, made on first use: about 10 ms, 5 MiB."""
    zeros, ones = np.divmod(np.arange(1 << 16, dtype=np.int32), np.int32(256))
    used = zeros + ones <= LIMIT
    stretch = np.rint(256 * np.log((5 * ones + 2) / (5 * zeros + 2))) * used
    odds = np.arange(-REACH, REACH + 1) / 256
    squash = np.rint(UNIT / (1 + np.exp(-odds)))
    after = []
    for more in ([1, 0], [0, 1]):
        counts = np.stack([zeros, ones]) + np.array(more, np.int32)[:, None]
        counts = np.where(counts.sum(axis=0) > LIMIT, (counts + 1) // 2, counts)
        after.append(((256 * counts[0] + counts[1]) * used).tolist())
    lists = [table.astype(np.int32).tolist() for table in (stretch, squash)]
    return Tables(lists[0], lists[1], (after[0], after[1]))


def weight_set() -> list[int]:
    """Return the weights of the inputs, in 1/65536, and how often they have moved."""
    return [START] * INPUTS + [0]


def mixer(states: list[int], pace: int, take: Take) -> Flag:
    """Return a function (weights, five places in ``states``, flag): it codes a flag.

    ``take(chance, flag)`` codes it: the chance of 1, in [1, 4095], and the flag, which a decoder
    does not know and returns. ``pace`` is the speed of the weights at last. The function is the
    hot loop of ``binary``: 2 microseconds a call.
    """
    stretch, squash, (after_0, after_1) = tables()
    rates = [pace + 2000 // (100 + flags) for flags in range(PATIENCE)]
    last = PATIENCE - 1

    def flag(  # noqa: PLR0917 - keywords would cost a tenth of the time
        weights: list[int], a: int, b: int, c: int, d: int, e: int, known: int
    ) -> int:
        sa, sb, sc, sd, se = states[a], states[b], states[c], states[d], states[e]
        xa, xb, xc, xd, xe = stretch[sa], stretch[sb], stretch[sc], stretch[sd], stretch[se]
        wa, wb, wc, wd, we, moved = weights
        odds = (wa * xa + wb * xb + wc * xc + wd * xd + we * xe) >> 16
        if not -REACH <= odds <= REACH:
            odds = REACH if odds > 0 else -REACH
        chance = squash[odds + REACH]
        bit = take(chance, known)
        pull = ((bit << 12) - chance) * rates[moved]
        weights[:] = (
            wa + (pull * xa + 8192 >> 14),
            wb + (pull * xb + 8192 >> 14),
            wc + (pull * xc + 8192 >> 14),
            wd + (pull * xd + 8192 >> 14),
            we + (pull * xe + 8192 >> 14),
            moved + 1 if moved < last else last,
        )
        after = after_1 if bit else after_0
        states[a], states[b], states[c] = after[sa], after[sb], after[sc]
        states[d], states[e] = after[sd], after[se]
        return bit

    return flag
