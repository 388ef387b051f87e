"""Where a coder's working numbers lie: one array, so that compiled kernels pass few arguments.

The first eight are the state of the bit coder (``bitcoder.py``). Then come what a symbol's flags
are told of it (the frame), scratch of the mixer, what a walk carries on, and two sets of features.
"""

from __future__ import annotations

COUNTERS, MAPS = 6, 4  # estimates of a flag from contexts, and from maps of the law
INPUTS = COUNTERS + 1 + MAPS
ENDS = 3
NEAR = 8  # neighbours in a row that a mean is predicted from
MEANS, DISTANCES = NEAR + 4, 8  # features of a mean, and of a distance from it

AT_FRAME = 8
# Of a matrix: its alphabet and geometry. Of a symbol: the law and what surrounds it.
LOWEST, HIGHEST, SHIFT, CENTRE, TAPS, PERIOD, PHASE, MEAN, INVERSE, SCALE, AROUND = range(
    AT_FRAME, AT_FRAME + 11
)
# Distances from their means so far: of all, the row, the filter; and what is derived from them.
TOTAL, COUNT, ROW, EXPECTED, FILTER, SEEN, USUAL, RATE = range(AROUND + 1, AROUND + 9)
FLAGS, MOST_FLAGS = RATE + 1, RATE + 2  # coded so far in a stream, and how many it may have
AT_CONTEXTS = MOST_FLAGS + 1  # of counters, then of maps
AT_SLOTS = AT_CONTEXTS + COUNTERS + MAPS
AT_CELLS = AT_SLOTS + COUNTERS  # of maps, and of the two final ones
AT_SETS = AT_CELLS + MAPS + 2  # of weights: two, and that of the end
AT_INPUTS = AT_SETS + 3
AT_ENDS = AT_INPUTS + INPUTS  # what is mixed at the end
AT_MEANS = AT_ENDS + ENDS
AT_DISTANCES = AT_MEANS + MEANS
SIZE = AT_DISTANCES + DISTANCES
