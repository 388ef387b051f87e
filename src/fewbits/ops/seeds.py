"""Seeds as a function of the position: nothing has to be kept to draw the same numbers again."""

from __future__ import annotations

import numpy as np

__all__ = ["seed_at"]


def seed_at(*position: int) -> int:
    """Return an integer in [0, 2**63) that depends on all numbers of ``position``, each >= 0.

    Its low 32 bits do too: torch's generator on the CPU takes no others.
    """
    words = np.random.SeedSequence(position).generate_state(1, np.uint64)
    return int(words[0]) >> 1
