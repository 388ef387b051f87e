"""The chance of one flag, from counters, a law and maps of it, mixed in the logistic domain.

Logistic mixing is Mahoney's (PAQ, 2005): estimates are added as logarithms of odds, and weights
follow the gradient of the coded bits. Three kinds of estimates go in: counters of contexts, the
chance that a law gives, and that chance as maps have learnt to correct it. Two more maps correct
what comes out.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from .. import state as reg
from ..bitcoder import ONE, RECIPROCALS, SQUASH, interpolated, squash, stretch, take_bit
from ..kernels import inlined, kernel

__all__ = [
    "AT_MAPS",
    "CELLS",
    "FINAL",
    "FINAL_SIZE",
    "MAP",
    "NODES",
    "PHASES",
    "SPAN",
    "STILL",
    "WEIGHTS",
    "accumulate",
    "age",
    "chance_of_flag",
    "new_model",
    "new_table",
    "predict",
    "sweep",
    "take_flag",
]


# ruff: noqa: PLR0917 - compiled functions take no keywords


NODES = 32  # kinds of flags
CELLS = 64  # contexts of a map
MAP = 34  # places of a map in one context, with one to spare
FINAL_SIZE = (16, 49)  # contexts of the maps at the end
SCALES = 16  # classes of sizes that choose weights
PATIENCE = 1023
STILL = 1 << 29  # a counter that has seen nothing: chance of a half in 20 bits, above a count of 10
SURE = 1 << 20
MARGIN = 16  # of a chance, from 0 and 1
# Counters by context: mean and scale, neighbours, tuples, column, mean and neighbours, last.
SPAN = (41 * 53 * 64, 784 * 64, 675 * 64, 4096 * 64, 637 * 64, 93 * 64)
# Where parts of a model begin: counters first, then maps, final maps, and sets of weights.
AT_MAPS = sum(SPAN)
FINAL = AT_MAPS + reg.MAPS * NODES * CELLS * MAP
WEIGHTS = FINAL + NODES * sum(FINAL_SIZE) * MAP
SET = reg.INPUTS + 1  # weights in 1/65536, and how often they moved
PHASES = 3  # of tuples, at most
ENDS = WEIGHTS + NODES * (PHASES + SCALES) * SET
CALM = 1  # the weights at the end move slower

Ints = NDArray[np.int64]
Model = NDArray[np.int32]
RATES: Ints = 60 + 16000 // (16 + np.arange(PATIENCE + 1, dtype=np.int64))
MOST_SEEN = 1 << 15  # observations before sums are halved: no product leaves 64 bits


def new_model() -> Model:
    """Return a model that has seen nothing: 4 MiB.

    A counter is a chance (20 bits) and a count (10 bits); a map has chances in 1/65536 by the
    chance of the law. Weights are a set for each kind of flag, then one for each kind and scale.
    """
    return _blank().copy()


@cache
def _blank() -> Model:
    weights = np.zeros((NODES * (PHASES + SCALES), SET), np.int32)
    weights[:, : reg.COUNTERS] = round(0.11 * ONE)
    weights[:, reg.COUNTERS] = round(0.3 * ONE)
    weights[:, reg.COUNTERS + 1 : reg.INPUTS] = round(0.15 * ONE)
    identity = SQUASH[[min(128 * k, 4095) + 1023 for k in range(MAP)]].astype(np.int32)
    maps = np.tile(identity, (WEIGHTS - AT_MAPS) // MAP)
    ends = np.tile(np.array([5, 1, 2, 0], np.int32) * (ONE >> 3), NODES * PHASES)
    return np.concatenate([np.full(AT_MAPS, STILL, np.int32), maps, weights.reshape(-1), ends])


@inlined
def gather(model: Model, state: Ints, law: int, at: int) -> None:
    """Fill the inputs; ``at`` is the place of ``law`` in a map, in 1/4096 of a step."""
    for j in range(reg.COUNTERS):
        state[reg.AT_INPUTS + j] = stretch(int(model[state[reg.AT_SLOTS + j]]) >> 14)
    state[reg.AT_INPUTS + reg.COUNTERS] = law
    step, part = at >> 12, at & 4095
    for j in range(reg.MAPS):
        chance = interpolated(model, int(state[reg.AT_CELLS + j]) + step, part)
        state[reg.AT_INPUTS + reg.COUNTERS + 1 + j] = stretch(chance)


@inlined
def learn_map(model: Model, at: int, part: int, target: int) -> None:
    """Move both neighbours of a place in a map towards the flag, the nearer one more."""
    model[at] += ((target - int(model[at])) * (4096 - part)) >> 18
    model[at + 1] += ((target - int(model[at + 1])) * part) >> 18


@inlined
def learn(model: Model, state: Ints, at: int, bit: int) -> None:
    """Teach counters and maps a flag."""
    target = SURE - 1 if bit else 0
    for j in range(reg.COUNTERS):
        slot = int(state[reg.AT_SLOTS + j])
        count, chance = int(model[slot]) & 1023, int(model[slot]) >> 10
        chance += ((target - chance) * int(RECIPROCALS[count])) >> 16
        model[slot] = (chance << 10) | min(count + 1, PATIENCE)
    step, part = at >> 12, at & 4095
    for j in range(reg.MAPS):
        learn_map(model, int(state[reg.AT_CELLS + j]) + step, part, ONE - 1 if bit else 0)


@inlined
def weigh(model: Model, state: Ints, chosen: int, at: int, count: int) -> int:
    """Return the sum of what lies on the state from ``at`` on, by one set of weights."""
    total = 0
    for j in range(count):
        total += int(model[chosen + j]) * int(state[at + j])
    return min(max(total >> 16, -2047), 2047)


@inlined
def reweigh(model: Model, state: Ints, chosen: int, at: int, count: int, error: int) -> None:
    """Move one set of weights by the error of what they gave, in 1/65536.

    They stay within 2**26: a step is below 2**14, and none is made in a direction that is sure.
    """
    moved = int(model[chosen + count])
    pull = (error * int(RATES[moved])) >> 10
    model[chosen + count] = min(moved + 1, PATIENCE)
    for j in range(count):
        weight = int(model[chosen + j]) + ((pull * int(state[at + j]) + 8192) >> 14)
        model[chosen + j] = weight


@inlined
def mixed(model: Model, state: Ints, law: int) -> tuple[int, int, int, int]:
    """Return the chance of the flag on the state, and three logarithms of odds that it is made of.

    Those are what either set of weights gives, and their mean.
    """
    state[reg.FLAGS] += 1
    at = (law + 2048) << 5
    gather(model, state, law, at)
    first, second = (
        WEIGHTS + SET * int(state[reg.AT_SETS]),
        WEIGHTS + SET * int(state[reg.AT_SETS + 1]),
    )
    odds = weigh(model, state, first, reg.AT_INPUTS, reg.INPUTS)
    other = weigh(model, state, second, reg.AT_INPUTS, reg.INPUTS)
    mean = (odds + other) >> 1
    place = (mean + 2048) << 5
    state[reg.AT_ENDS] = mean
    by_scale, by_around = (
        int(state[reg.AT_CELLS + reg.MAPS]),
        int(state[reg.AT_CELLS + reg.MAPS + 1]),
    )
    scaled = interpolated(model, by_scale + (place >> 12), place & 4095)
    state[reg.AT_ENDS + 1] = stretch(scaled)
    placed = interpolated(model, by_around + (at >> 12), at & 4095)
    state[reg.AT_ENDS + 2] = stretch(placed)
    last = ENDS + (reg.ENDS + 1) * int(state[reg.AT_SETS + 2])
    return squash(weigh(model, state, last, reg.AT_ENDS, reg.ENDS)), odds, other, mean


@kernel
def chance_of_flag(model: Model, state: Ints, law: int) -> int:
    """Return the chance of a flag as :func:`take_flag` would have it, and learn nothing."""
    return min(max(mixed(model, state, law)[0], MARGIN), ONE - MARGIN)


@kernel
def take_flag(model: Model, state: Ints, buffer: NDArray[np.uint8], law: int, bit: int) -> int:
    """Code one flag, for which slots, cells and sets are on the state, and learn from it.

    ``law``: the logarithm of odds that the law gives.
    """
    chance, odds, other, mean = mixed(model, state, law)
    bit = take_bit(state, buffer, min(max(chance, MARGIN), ONE - MARGIN), bit)
    target = ONE - 1 if bit else 0
    at, place = (law + 2048) << 5, (mean + 2048) << 5
    last = ENDS + (reg.ENDS + 1) * int(state[reg.AT_SETS + 2])
    reweigh(model, state, last, reg.AT_ENDS, reg.ENDS, (target - chance) >> CALM)
    learn_map(model, int(state[reg.AT_CELLS + reg.MAPS]) + (place >> 12), place & 4095, target)
    learn_map(model, int(state[reg.AT_CELLS + reg.MAPS + 1]) + (at >> 12), at & 4095, target)
    first, second = (
        WEIGHTS + SET * int(state[reg.AT_SETS]),
        WEIGHTS + SET * int(state[reg.AT_SETS + 1]),
    )
    reweigh(model, state, first, reg.AT_INPUTS, reg.INPUTS, target - squash(odds))
    reweigh(model, state, second, reg.AT_INPUTS, reg.INPUTS, target - squash(other))
    learn(model, state, at, bit)
    return bit


# ruff: noqa: PLR0917 - compiled functions take no keywords


def new_table(prior: Ints) -> Ints:
    """Return a table of regressions that have seen nothing; ``prior``: (rows, n)."""
    rows, size = prior.shape
    sums = np.zeros((rows, size * size + size), np.int64)
    return np.concatenate([sums, prior, prior, np.zeros((rows, 1), np.int64)], axis=1)


def age(table: Ints, size: int, bits: int) -> None:
    """Turn to another matrix: what was seen counts ``2**bits`` times less."""
    table[:, : size * size + size] >>= bits
    table[:, -1] >>= bits


@inlined
def predict(table: Ints, row: int, state: Ints, at: int, size: int) -> int:
    """Return the sum of the features from ``at`` on, by the weights of a row."""
    weights, total = size * size + size, 0
    for j in range(size):
        total += int(table[row, weights + j]) * int(state[at + j])
    return total


@inlined
def accumulate(table: Ints, row: int, state: Ints, at: int, size: int, target: int) -> None:
    """Add the features from ``at`` on, and their target, to a row."""
    for i in range(size):
        feature = int(state[at + i])
        if feature != 0:
            table[row, size * size + i] += feature * target
            for j in range(size):
                table[row, i * size + j] += feature * int(state[at + j])
    last = size * size + 3 * size
    table[row, last] += 1
    if table[row, last] >= MOST_SEEN:
        table[row, last] >>= 1
        for i in range(size * size + size):
            table[row, i] >>= 1


@kernel
def sweep(table: Ints, row: int, size: int, ridge: int, shift: int) -> None:
    """Move each weight of a row, in ``2**-shift``, to where its equation holds, within 8."""
    right = size * size
    weights, prior, bound = right + size, right + 2 * size, 8 << shift
    for i in range(size):
        rest = (int(table[row, right + i]) << shift) + ridge * int(table[row, prior + i])
        own = int(table[row, i * size + i])
        for j in range(size):
            rest -= int(table[row, i * size + j]) * int(table[row, weights + j])
        rest += own * int(table[row, weights + i])
        table[row, weights + i] = min(max(rest // (own + ridge), -bound), bound)
