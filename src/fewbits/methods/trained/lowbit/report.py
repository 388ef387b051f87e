"""How layers use the levels they have, and warnings where they waste them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ....coded import entropy_of
from .inputs import LowBitInput
from .stages import FLOAT
from .weights import LowBitWeight

__all__ = ["LayerLevels", "levels_of", "warn_of"]

_LEAST_ENTROPY = 0.6  # bits for each bit of width: 1.2 bits at 2
_NARROW = 2  # the width at which a low entropy is a fault; above, it is what a coder lives by
_MOST_CLIPPED = 0.25


@dataclass(frozen=True)
class LayerLevels:
    """The levels of one weight or one quantized input.

    Attributes:
        name: of the weight, or of the layer whose input it is.
        what: "weights" or "inputs".
        bits: width.
        counts: how many values are on each level, from the lowest up.
        entropy: of the levels, in bits.
        clipped: share of values beyond the outermost levels.
        step: the mean step; below zero or zero it is broken.
    """

    name: str
    what: str
    bits: int
    counts: tuple[int, ...]
    entropy: float
    clipped: float
    step: float

    @property
    def used(self) -> int:
        """Levels that hold a value."""
        return sum(count > 0 for count in self.counts)

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.what}): {self.bits} bits, {self.used} of {len(self.counts)} "
            f"levels, entropy {self.entropy:.2f}, clipped {self.clipped:.1%}, step {self.step:.4g}"
        )


@torch.no_grad()
def levels_of(name: str, part: LowBitWeight | LowBitInput) -> LayerLevels | None:
    """Return how a weight, or the inputs of the latest batch, use their levels; None for floats."""
    if part.bits == FLOAT:
        return None
    what = "weights" if isinstance(part, LowBitWeight) else "inputs"
    index, count, clipped, step = part.occupied()
    counts = torch.bincount(index.reshape(-1).long().cpu(), minlength=count)
    entropy = entropy_of(counts.numpy())
    return LayerLevels(name, what, part.bits, tuple(counts.tolist()), entropy, clipped, step)


def warn_of(rows: Iterable[LayerLevels]) -> None:
    """Warn of weights with hardly more levels in use than a narrower grid has, and of clipping."""
    for row in rows:
        if not row.step > 2e-9:
            _tell(
                f"{row.name} ({row.what}): its step has shrunk to nothing. Lower the learning rate."
            )
        elif row.what == "weights" and row.bits == _NARROW:
            if row.entropy < _LEAST_ENTROPY * row.bits:
                _tell(
                    f"weight {row.name!r}: {row.entropy:.2f} bits of entropy on a grid of "
                    f"{row.bits} bits; most of its levels are hardly used. A learned step "
                    "(quantizer='lsq') uses them."
                )
        elif row.what == "inputs" and row.clipped > _MOST_CLIPPED and row.bits > 1:
            _tell(
                f"input of {row.name!r}: {row.clipped:.0%} of its values are clipped. Use a "
                "learned range (quantizer='lsq' or 'pact')."
            )


def _tell(text: str) -> None:
    warnings.warn(text, stacklevel=6)
