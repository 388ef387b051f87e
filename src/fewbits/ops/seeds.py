"""Seeds as a function of a position, so that draws can be repeated without storing state."""

from __future__ import annotations

import numpy as np

__all__ = ["seed_at"]


def seed_at(*position: int) -> int:
    """Return an integer in [0, 2**63) that depends on all numbers of ``position``, each >= 0.

    So do its low 32 bits, the only ones that torch's CPU generator uses.
    """
    words = np.random.SeedSequence(position).generate_state(1, np.uint64)
    return int(words[0]) >> 1
