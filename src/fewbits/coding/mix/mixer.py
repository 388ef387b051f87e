"""Estimate the probability of a flag by logistic mixing of counters, a prior, and maps of it.

Logistic mixing is Mahoney's (PAQ, 2005): estimates are added as log odds, and weights follow the
gradient of the coded bits. The inputs are counters of contexts, the prior probability from a
distribution, and the prior as corrected by learned maps. Two more maps correct the result.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from .. import state as reg
from ..bitcoder import ONE, RECIPROCALS, SQUASH, code_bit, interpolate, squash, stretch
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
    "UNSEEN",
    "WEIGHTS",
    "accumulate",
    "chance_of_flag",
    "code_flag",
    "discount",
    "new_model",
    "new_table",
    "predict",
    "solve_sweep",
]


# ruff: noqa: PLR0917 - compiled functions take no keywords


NODES = 32  # kinds of flags
CELLS = 64  # contexts of a map
MAP = 34  # entries of a map per context, including a spare one
FINAL_SIZE = (16, 49)  # contexts of the final maps
SCALES = 16  # classes of sizes that select weights
MAX_COUNT = 1023
UNSEEN = 1 << 29  # an unused counter: probability 1/2 in 20 bits, above a count of 10 bits
COUNTER_ONE = 1 << 20
MARGIN = 16  # least distance of a probability from 0 and 1
# Counters by context: mean and scale, neighbours, tuples, column, mean and neighbours, last.
SPAN = (41 * 53 * 64, 784 * 64, 675 * 64, 4096 * 64, 637 * 64, 93 * 64)
# Offsets of the parts of a model: counters, maps, final maps, sets of weights.
AT_MAPS = sum(SPAN)
FINAL = AT_MAPS + reg.MAPS * NODES * CELLS * MAP
WEIGHTS = FINAL + NODES * sum(FINAL_SIZE) * MAP
SET = reg.INPUTS + 1  # weights in 1/65536, and how often they were updated
PHASES = 3  # most phases of tuples
ENDS = WEIGHTS + NODES * (PHASES + SCALES) * SET
FINAL_SHIFT = 1  # the final weights learn at a rate of 2**-1 of the others'

Ints = NDArray[np.int64]
Model = NDArray[np.int32]
RATES: Ints = 60 + 16000 // (16 + np.arange(MAX_COUNT + 1, dtype=np.int64))
MOST_SEEN = 1 << 15  # observations before sums are halved, so that products fit 64 bits


def new_model() -> Model:
    """Return an untrained model (4 MiB).

    A counter is a probability (20 bits) and a count (10 bits); a map has probabilities in 1/65536,
    indexed by the prior. There is a set of weights per kind of flag and phase, then one per kind
    and scale.
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
    return np.concatenate([np.full(AT_MAPS, UNSEEN, np.int32), maps, weights.reshape(-1), ends])


@inlined
def gather_inputs(model: Model, state: Ints, law: int, at: int) -> None:
    """Collect the inputs; ``at`` is the position of ``law`` in a map, in 1/4096 of an entry."""
    for j in range(reg.COUNTERS):
        state[reg.AT_INPUTS + j] = stretch(int(model[state[reg.AT_SLOTS + j]]) >> 14)
    state[reg.AT_INPUTS + reg.COUNTERS] = law
    step, part = at >> 12, at & 4095
    for j in range(reg.MAPS):
        chance = interpolate(model, int(state[reg.AT_CELLS + j]) + step, part)
        state[reg.AT_INPUTS + reg.COUNTERS + 1 + j] = stretch(chance)


@inlined
def learn_map(model: Model, at: int, part: int, target: int) -> None:
    """Move both entries next to a position in a map towards the flag, the nearer one more."""
    model[at] += ((target - int(model[at])) * (4096 - part)) >> 18
    model[at + 1] += ((target - int(model[at + 1])) * part) >> 18


@inlined
def learn_estimates(model: Model, state: Ints, at: int, bit: int) -> None:
    """Update counters and maps with a flag."""
    target = COUNTER_ONE - 1 if bit else 0
    for j in range(reg.COUNTERS):
        slot = int(state[reg.AT_SLOTS + j])
        count, chance = int(model[slot]) & 1023, int(model[slot]) >> 10
        chance += ((target - chance) * int(RECIPROCALS[count])) >> 16
        model[slot] = (chance << 10) | min(count + 1, MAX_COUNT)
    step, part = at >> 12, at & 4095
    for j in range(reg.MAPS):
        learn_map(model, int(state[reg.AT_CELLS + j]) + step, part, ONE - 1 if bit else 0)


@inlined
def dot(model: Model, state: Ints, chosen: int, at: int, count: int) -> int:
    """Return the dot product of a set of weights and the values in the state from ``at`` on."""
    total = 0
    for j in range(count):
        total += int(model[chosen + j]) * int(state[at + j])
    return min(max(total >> 16, -2047), 2047)


@inlined
def update_weights(model: Model, state: Ints, chosen: int, at: int, count: int, error: int) -> None:
    """Update a set of weights by the error of its prediction, in 1/65536.

    Weights stay within 2**26: a step is below 2**14, and certain predictions make none.
    """
    moved = int(model[chosen + count])
    pull = (error * int(RATES[moved])) >> 10
    model[chosen + count] = min(moved + 1, MAX_COUNT)
    for j in range(count):
        weight = int(model[chosen + j]) + ((pull * int(state[at + j]) + 8192) >> 14)
        model[chosen + j] = weight


@inlined
def mix_flag(model: Model, state: Ints, law: int) -> tuple[int, int, int, int]:
    """Return the flag's probability, and the log odds of both sets of weights and their mean."""
    state[reg.FLAGS] += 1
    at = (law + 2048) << 5
    gather_inputs(model, state, law, at)
    first, second = (
        WEIGHTS + SET * int(state[reg.AT_SETS]),
        WEIGHTS + SET * int(state[reg.AT_SETS + 1]),
    )
    odds = dot(model, state, first, reg.AT_INPUTS, reg.INPUTS)
    other = dot(model, state, second, reg.AT_INPUTS, reg.INPUTS)
    mean = (odds + other) >> 1
    place = (mean + 2048) << 5
    state[reg.AT_ENDS] = mean
    by_scale, by_around = (
        int(state[reg.AT_CELLS + reg.MAPS]),
        int(state[reg.AT_CELLS + reg.MAPS + 1]),
    )
    scaled = interpolate(model, by_scale + (place >> 12), place & 4095)
    state[reg.AT_ENDS + 1] = stretch(scaled)
    placed = interpolate(model, by_around + (at >> 12), at & 4095)
    state[reg.AT_ENDS + 2] = stretch(placed)
    last = ENDS + (reg.ENDS + 1) * int(state[reg.AT_SETS + 2])
    return squash(dot(model, state, last, reg.AT_ENDS, reg.ENDS)), odds, other, mean


@kernel
def chance_of_flag(model: Model, state: Ints, law: int) -> int:
    """Return the probability that :func:`code_flag` would use, without learning."""
    return min(max(mix_flag(model, state, law)[0], MARGIN), ONE - MARGIN)


@kernel
def code_flag(model: Model, state: Ints, buffer: NDArray[np.uint8], law: int, bit: int) -> int:
    """Code one flag, whose slots, cells and sets are in the state, and learn from it.

    ``law`` is its prior log odds.
    """
    chance, odds, other, mean = mix_flag(model, state, law)
    bit = code_bit(state, buffer, min(max(chance, MARGIN), ONE - MARGIN), bit)
    target = ONE - 1 if bit else 0
    at, place = (law + 2048) << 5, (mean + 2048) << 5
    last = ENDS + (reg.ENDS + 1) * int(state[reg.AT_SETS + 2])
    update_weights(model, state, last, reg.AT_ENDS, reg.ENDS, (target - chance) >> FINAL_SHIFT)
    learn_map(model, int(state[reg.AT_CELLS + reg.MAPS]) + (place >> 12), place & 4095, target)
    learn_map(model, int(state[reg.AT_CELLS + reg.MAPS + 1]) + (at >> 12), at & 4095, target)
    first, second = (
        WEIGHTS + SET * int(state[reg.AT_SETS]),
        WEIGHTS + SET * int(state[reg.AT_SETS + 1]),
    )
    update_weights(model, state, first, reg.AT_INPUTS, reg.INPUTS, target - squash(odds))
    update_weights(model, state, second, reg.AT_INPUTS, reg.INPUTS, target - squash(other))
    learn_estimates(model, state, at, bit)
    return bit


# ruff: noqa: PLR0917 - compiled functions take no keywords


def new_table(prior: Ints) -> Ints:
    """Return untrained linear regressions, one per row of ``prior`` (rows, n)."""
    rows, size = prior.shape
    sums = np.zeros((rows, size * size + size), np.int64)
    return np.concatenate([sums, prior, prior, np.zeros((rows, 1), np.int64)], axis=1)


def discount(table: Ints, size: int, bits: int) -> None:
    """Discount past observations by ``2**bits`` before the next matrix."""
    table[:, : size * size + size] >>= bits
    table[:, -1] >>= bits


@inlined
def predict(table: Ints, row: int, state: Ints, at: int, size: int) -> int:
    """Return the dot product of a row's weights and the features from ``at`` on."""
    weights, total = size * size + size, 0
    for j in range(size):
        total += int(table[row, weights + j]) * int(state[at + j])
    return total


@inlined
def accumulate(table: Ints, row: int, state: Ints, at: int, size: int, target: int) -> None:
    """Add the features from ``at`` on, and their target, to the sums of a row."""
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
def solve_sweep(table: Ints, row: int, size: int, ridge: int, shift: int) -> None:
    """Do one Gauss-Seidel sweep over a row's weights, in ``2**-shift``, each clipped to 8."""
    right = size * size
    weights, prior, bound = right + size, right + 2 * size, 8 << shift
    for i in range(size):
        rest = (int(table[row, right + i]) << shift) + ridge * int(table[row, prior + i])
        own = int(table[row, i * size + i])
        for j in range(size):
            rest -= int(table[row, i * size + j]) * int(table[row, weights + j])
        rest += own * int(table[row, weights + i])
        table[row, weights + i] = min(max(rest // (own + ridge), -bound), bound)
