"""Layout of the coder's state: one array, so that compiled kernels take few arguments.

The first eight entries belong to the bit coder (``bitcoder.py``). Then follow the current matrix
and symbol, scratch of the mixer, running totals of a walk, and two sets of features.
"""

from __future__ import annotations

COUNTERS, MAPS = 6, 4  # estimates of a flag from contexts, and from maps of the prior
INPUTS = COUNTERS + 1 + MAPS
ENDS = 3
NEAR = 8  # neighbours in a row from which a mean is predicted
MEANS, DISTANCES = NEAR + 4, 8  # features of a mean, and of a distance from it

AT_FRAME = 8
# Of the matrix: alphabet and geometry. Of the symbol: its distribution and surroundings.
LOWEST, HIGHEST, SHIFT, CENTRE, TAPS, PERIOD, PHASE, MEAN, INVERSE, SCALE, AROUND = range(
    AT_FRAME, AT_FRAME + 11
)
# Distances from their means so far (overall, row, filter), and values derived from them.
TOTAL, COUNT, ROW, EXPECTED, FILTER, SEEN, USUAL, RATE = range(AROUND + 1, AROUND + 9)
FLAGS, MOST_FLAGS = RATE + 1, RATE + 2  # flags coded so far in the stream, and their limit
# Of a matrix that follows the trellis: whether it does, and whether the next number is odd.
TRELLIS, ODD = MOST_FLAGS + 1, MOST_FLAGS + 2
AT_CONTEXTS = ODD + 1  # contexts of counters, then of maps
AT_SLOTS = AT_CONTEXTS + COUNTERS + MAPS
AT_CELLS = AT_SLOTS + COUNTERS  # of maps, and of the two final ones
AT_SETS = AT_CELLS + MAPS + 2  # two sets of weights, and the final one
AT_INPUTS = AT_SETS + 3
AT_ENDS = AT_INPUTS + INPUTS  # inputs of the final mixing
AT_MEANS = AT_ENDS + ENDS
AT_DISTANCES = AT_MEANS + MEANS
SIZE = AT_DISTANCES + DISTANCES
