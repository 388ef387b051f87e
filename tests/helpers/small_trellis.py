"""A trellis of 4 states, small enough for tests to try all of its paths."""

import numpy as np

__all__ = ["FOLLOWING", "LOWEST", "TOP", "follows"]

LOWEST, TOP = -5, 5
# State s takes integers of the parity of s.
FOLLOWING = np.array([[0, 2], [2, 0], [1, 3], [3, 1]], np.int64)


def follows(path):
    """Return whether a sequence of integers is a path from state 0."""
    state = 0
    for number in path:
        if (number ^ state) & 1:
            return False
        state = FOLLOWING[state, number >> 1 & 1]
    return True
