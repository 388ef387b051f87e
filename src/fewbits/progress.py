"""How long work tells where it is: one callback, one event; silent unless somebody listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Progress", "ProgressEvent", "silent"]


@dataclass(frozen=True)
class ProgressEvent:
    """One step of long work.

    Attributes:
        stage: what runs: "calibrate", "quantize", "evaluate", "train".
        done: steps finished; 0 announces the stage.
        total: steps in all; 0 where unknown.
        detail: the layer or epoch just finished.
    """

    stage: str
    done: int
    total: int
    detail: str = ""


Progress: TypeAlias = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """Listen to nothing."""
