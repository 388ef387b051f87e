"""Binarization of numbers into flags (zero, sign, magnitude), and their prior probabilities.

A magnitude m >= 1 is coded as m - 1 in the style of Exp-Golomb: its number of bits in unary, then
the bits below the first. Flags with only one possible value in the alphabet are not coded. Each
flag splits an interval of numbers, so a logistic distribution gives its prior probability.
"""

# ruff: noqa: PLR0917 - compiled functions take no keywords
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import state as reg
from ..bitcoder import COSTS, ONE, SQUASH, stretch
from ..kernels import inlined, kernel
from .mixer import (
    AT_MAPS,
    CELLS,
    FINAL,
    FINAL_SIZE,
    MAP,
    NODES,
    PHASES,
    SPAN,
    chance_of_flag,
    code_flag,
)

__all__ = ["SHARPNESS", "code_number", "price_numbers", "unit_of"]

SHARPNESS = 443  # 256 * 2 ln 2 * 1.25: from a mean magnitude to the scale of the distribution
UNIT_BITS = 6
MEANS = 20  # quarters of a level, on either side, that contexts distinguish
ZERO, SIGN, CLASS, BITS = 0, 1, 2, 3
SCALES = 14
FOURTH = sum(SPAN[:4])

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Model = NDArray[np.int32]
Prices = NDArray[np.float32]


@inlined
def unit_of(number: int, shift: int) -> int:
    """Return a number in the unit of the statistics, 1/64 of ``2**shift``."""
    return (number << UNIT_BITS) >> shift


@inlined
def tail(state: Ints, edge: int) -> int:
    """Return the probability, in 1/65536, of at least ``edge`` half levels above 0."""
    half = UNIT_BITS - 1 + int(state[reg.TRELLIS])  # there, numbers are two levels apart
    away = ((edge << half) >> int(state[reg.SHIFT])) - int(state[reg.MEAN])
    return int(SQUASH[3071 - min(max((away * int(state[reg.INVERSE])) >> 16, -3000), 3000)])


@inlined
def tail_beyond(state: Ints, negative: int, magnitude: int) -> int:
    """Return the probability of at least ``magnitude`` on one side of 0."""
    if negative:
        return ONE - tail(state, 1 - 2 * magnitude)
    return tail(state, 2 * magnitude - 1)


@inlined
def node_of(depth: int, size: int, value: int) -> int:
    """Return the node (kind of flag) of the bit ``depth`` below the first of ``size`` bits."""
    if depth == 0:
        return 14 + min(size - 2, 5)
    if depth == 1:
        return 20 + 2 * min(size - 3, 2) + (value & 1)
    return 26 + min(depth - 2, 5)


@inlined
def look_up(state: Ints, stage: int, node: int, negative: int, cut: int, span: int) -> int:
    """Set the positions of counters, maps and weights for a flag; return its prior log odds.

    The prior probability of the flag is ``cut / span``.
    """
    scale = int(state[reg.SCALE]) >> 2
    for j in range(reg.COUNTERS):
        state[reg.AT_SLOTS + j] = int(state[reg.AT_CONTEXTS + j]) + node + 32 * negative
    if stage >= CLASS:  # the mean as seen from this side of 0
        mean = min(max(int(state[reg.MEAN]) >> 4, -MEANS), MEANS)
        seen = -mean if negative else mean
        state[reg.AT_SLOTS] = ((seen + MEANS) * 53 + int(state[reg.SCALE])) * 64 + node
        state[reg.AT_SLOTS + 4] = FOURTH + ((mean + MEANS) * 14 + scale) * 64 + node + 32 * negative
    for j in range(reg.MAPS):
        cell = (j * NODES + node) * CELLS + int(state[reg.AT_CONTEXTS + reg.COUNTERS + j])
        state[reg.AT_CELLS + j] = AT_MAPS + cell * MAP
    state[reg.AT_CELLS + reg.MAPS] = FINAL + (node * FINAL_SIZE[0] + scale) * MAP
    around = NODES * FINAL_SIZE[0] + node * FINAL_SIZE[1] + int(state[reg.AROUND])
    state[reg.AT_CELLS + reg.MAPS + 1] = FINAL + around * MAP
    state[reg.AT_SETS] = state[reg.AT_SETS + 2] = node * PHASES + int(state[reg.PHASE])
    state[reg.AT_SETS + 1] = NODES * PHASES + node * 16 + scale
    return stretch(min(max((cut << 16) // max(span, 1), 16), ONE - 1))


@kernel
def ask(
    model: Model, state: Ints, buffer: Bytes, stage: int, node: int, negative: int,
    cut: int, span: int, bit: int,
) -> int:  # fmt: skip
    """Code a flag of kind ``node`` with the prior probability ``cut / span``."""
    return code_flag(model, state, buffer, look_up(state, stage, node, negative, cut, span), bit)


@kernel
def code_magnitude(
    model: Model, state: Ints, buffer: Bytes, negative: int, most: int, span: int, known: int
) -> int:
    """Code a magnitude minus 1, at most ``most``, whose side of 0 has the probability ``span``."""
    size, beyond = 0, 0
    while 1 << size <= most:
        beyond = tail_beyond(state, negative, (1 << size) + 1)
        node = 2 + min(size, 11)
        more = 1 if known >= 1 << size else 0
        if ask(model, state, buffer, CLASS, node, negative, beyond, span, more) == 0:
            break
        size, span, beyond = size + 1, beyond, 0
    value = 1 if size else 0
    for rest in range(size - 2, -1, -1):
        bit, middle = 0, (2 * value + 1) << rest
        if middle <= most:
            cut = tail_beyond(state, negative, middle + 1)
            node = node_of(size - 2 - rest, size, value)
            bit = known >> rest & 1
            bit = ask(model, state, buffer, BITS, node, negative, cut - beyond, span - beyond, bit)
            span, beyond = (cut, beyond) if bit else (span, cut)
        value = 2 * value + bit
    return value


@kernel
def code_number(model: Model, state: Ints, buffer: Bytes, known: int) -> int:
    """Code a number within the alphabet; when decoding, return it."""
    lowest, highest = int(state[reg.LOWEST]), int(state[reg.HIGHEST])
    if lowest == highest:
        return 0
    below = tail_beyond(state, 1, 1) if lowest < 0 else 0
    above = tail_beyond(state, 0, 1) if highest > 0 else 0
    if ask(model, state, buffer, ZERO, 0, 0, above + below, ONE, 1 if known != 0 else 0) == 0:
        return 0
    negative = 1 if lowest < 0 else 0
    if lowest < 0 < highest:
        negative = ask(
            model, state, buffer, SIGN, 1, 0, below, below + above, 1 if known < 0 else 0
        )
    most = (-lowest if negative else highest) - 1
    span = below if negative else above
    magnitude = code_magnitude(model, state, buffer, negative, most, span, abs(known) - 1)
    return -magnitude - 1 if negative else magnitude + 1


@kernel
def price_flag(
    model: Model, state: Ints, prices: Prices, stage: int, node: int, negative: int,
    cut: int, span: int, without: int, having: int,
) -> None:  # fmt: skip
    """Price a flag: split the bits at ``without`` between numbers without the flag and with it.

    ``without`` and ``having`` are the positions of the first number of either kind.
    """
    chance = chance_of_flag(model, state, look_up(state, stage, node, negative, cut, span))
    prices[having] = prices[without] + COSTS[chance >> 4] / ONE
    prices[without] += COSTS[(ONE - chance) >> 4] / ONE


@kernel
def price_bits(
    model: Model, state: Ints, prices: Prices, zero: int, negative: int, most: int, size: int
) -> None:
    """Add the bits below the first to all magnitudes of a class, starting from its first one."""
    sign = -1 if negative else 1
    for rest in range(size - 2, -1, -1):
        for value in range(1 << (size - 2 - rest), 1 << (size - 1 - rest)):
            start, middle, end = 2 * value << rest, 2 * value + 1 << rest, 2 * value + 2 << rest
            if middle <= most:
                beyond = tail_beyond(state, negative, end + 1) if end <= most else 0
                cut = tail_beyond(state, negative, middle + 1) - beyond
                span = tail_beyond(state, negative, start + 1) - beyond
                node = node_of(size - 2 - rest, size, value)
                without, having = zero + sign * (start + 1), zero + sign * (middle + 1)
                price_flag(model, state, prices, BITS, node, negative, cut, span, without, having)


@kernel
def price_magnitudes(
    model: Model, state: Ints, prices: Prices, zero: int, negative: int, most: int, bound: int
) -> None:
    """Fill in the bits of all magnitudes (minus 1) up to ``most``, starting from the first.

    The flags are those of :func:`code_magnitude`. Classes that begin beyond ``bound`` are not
    modelled: to the bits that all of them share come those of an Elias gamma code.
    """
    sign = -1 if negative else 1
    size, more = 0, True
    while more:
        first, following = (1 << size) >> 1, 1 << size
        more = following <= most
        if more:
            cut = tail_beyond(state, negative, following + 1)
            span = tail_beyond(state, negative, first + 1)
            without, having = zero + sign * (first + 1), zero + sign * (following + 1)
            node = 2 + min(size, 11)
            price_flag(model, state, prices, CLASS, node, negative, cut, span, without, having)
        price_bits(model, state, prices, zero, negative, most, size)
        size += 1
        if more and following > bound:
            more = False
            shared = prices[zero + sign * (following + 1)]
            bits = 1
            for magnitude in range(following, most + 1):
                if magnitude - following + 1 >= 1 << (bits + 1) // 2:
                    bits += 2
                prices[zero + sign * (magnitude + 1)] = shared + bits


@kernel
def price_numbers(
    model: Model, state: Ints, prices: Prices, zero: int, known: int, reach: int
) -> None:
    """Fill in the bits of every number in the alphabet; the number 0 is at position ``zero``.

    Those of numbers further than ``reach`` from 0 and from ``known`` may be rough.
    """
    lowest, highest = int(state[reg.LOWEST]), int(state[reg.HIGHEST])
    prices[zero] = 0
    if lowest == highest:
        return
    below = tail_beyond(state, 1, 1) if lowest < 0 else 0
    above = tail_beyond(state, 0, 1) if highest > 0 else 0
    side = zero + 1 if highest > 0 else zero - 1
    price_flag(model, state, prices, ZERO, 0, 0, above + below, ONE, zero, side)
    if lowest < 0 < highest:
        price_flag(model, state, prices, SIGN, 1, 0, below, below + above, side, zero - 1)
    if highest > 0:
        price_magnitudes(model, state, prices, zero, 0, highest - 1, max(known, 0) + reach)
    if lowest < 0:
        price_magnitudes(model, state, prices, zero, 1, -lowest - 1, max(-known, 0) + reach)
