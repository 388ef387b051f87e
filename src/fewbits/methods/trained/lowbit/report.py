"""Report how layers use their levels, and warn if levels are wasted."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ....coded import entropy_of
from .inputs import LowBitInput
from .stages import FLOAT
from .weights import LowBitWeight

__all__ = ["LayerLevels", "layer_levels", "warn_of_waste"]

_LEAST_ENTROPY = 0.6  # bits of entropy per bit of width, that is 1.2 bits at 2
_NARROW = 2  # width at which a low entropy is a problem; at larger widths it makes the file small
_MOST_CLIPPED = 0.25


@dataclass(frozen=True)
class LayerLevels:
    """The levels of one weight or one quantized input.

    Attributes:
        name: name of the weight, or of the layer whose input it is.
        what: "weights" or "inputs".
        bits: width.
        counts: number of values on each level, from the lowest to the highest.
        entropy: entropy of the levels, in bits.
        clipped: share of values beyond the outermost levels.
        step: mean step, which must be above zero.
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
        """Number of levels with at least one value."""
        return sum(count > 0 for count in self.counts)

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.what}): {self.bits} bits, {self.used} of {len(self.counts)} "
            f"levels, entropy {self.entropy:.2f}, clipped {self.clipped:.1%}, step {self.step:.4g}"
        )


@torch.no_grad()
def layer_levels(name: str, part: LowBitWeight | LowBitInput) -> LayerLevels | None:
    """Return how a weight, or the latest batch of inputs, uses its levels; None in float."""
    if part.bits == FLOAT:
        return None
    what = "weights" if isinstance(part, LowBitWeight) else "inputs"
    index, count, clipped, step = part.level_usage()
    counts = torch.bincount(index.reshape(-1).long().cpu(), minlength=count)
    entropy = entropy_of(counts.numpy())
    return LayerLevels(name, what, part.bits, tuple(counts.tolist()), entropy, clipped, step)


def warn_of_waste(rows: Iterable[LayerLevels]) -> None:
    """Warn about vanished steps, levels that are hardly used, and much clipping."""
    for row in rows:
        if not row.step > 2e-9:
            _warn(f"{row.name} ({row.what}): the step has shrunk to zero. Lower the learning rate.")
        elif row.what == "weights" and row.bits == _NARROW:
            if row.entropy < _LEAST_ENTROPY * row.bits:
                _warn(
                    f"weight {row.name!r}: an entropy of {row.entropy:.2f} bits on a grid of "
                    f"{row.bits} bits, so most of its levels are hardly used. A learned step "
                    "(quantizer='lsq') makes better use of them."
                )
        elif row.what == "inputs" and row.clipped > _MOST_CLIPPED and row.bits > 1:
            _warn(
                f"input of {row.name!r}: {row.clipped:.0%} of its values are clipped. Use a "
                "learned range (quantizer='lsq' or 'pact')."
            )


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=6)
