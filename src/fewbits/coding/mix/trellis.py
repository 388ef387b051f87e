"""``trellis``: ``mix`` for columns that follow the trellis. The fewest bytes at equal error.

The parity of every number follows from those above it, so only the half of it is coded, with the
same flags, predictions and mixing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import CorruptFileError
from ..codec import CODECS, Layout, Symbols
from ..trellis import follows
from .mix import Mix
from .settings import Settings, Values, shift_of, usual_of

__all__ = ["Trellis"]


class Trellis(Mix):
    """Binary flags of halves, whose parity the trellis tells."""

    name, number, since = "trellis", 6, (2, 1)
    summary = "as mix, for columns that follow the trellis: the fewest bytes at equal error"
    trellis = True

    def measure(self, symbols: Symbols, layout: Layout) -> float | None:
        """Return the bits of the first rows, a sample of all; None if no column is a path."""
        return super().measure(symbols, layout) if follows(symbols) else None

    def encode_group(self, matrices: Sequence[Symbols], layouts: Sequence[Layout]) -> bytes | None:
        """Encode several matrices in one stream; None unless all of them follow the trellis."""
        if not all(map(follows, matrices)):
            return None
        return super().encode_group(matrices, layouts)

    def settings_of(self, values: Values, layout: Layout) -> Settings:
        """Choose settings: zero is the centre, and both parities have numbers in the alphabet."""
        lowest, highest = min(int(values.min()), -1), max(int(values.max()), 1)
        shift = shift_of(values, 0)
        return Settings(lowest, highest, 0, usual_of(values, 0, shift), 1, shift)

    def check_settings(self, settings: Settings) -> None:
        """Refuse another centre than 0, tuples, pictures, and a parity without numbers."""
        plain = settings.centre == 0 and settings.period == 1 and not settings.pictures
        if not (plain and settings.lowest <= -1 and settings.highest >= 1):
            raise CorruptFileError(f"settings that no trellis has: {settings}")


CODECS.register("trellis")(Trellis())
