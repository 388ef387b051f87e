"""Progress of long work: a callback that receives events, silent by default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Progress", "ProgressEvent", "silent"]


@dataclass(frozen=True)
class ProgressEvent:
    """One step of long work.

    Attributes:
        stage: name of the running stage, such as "calibrate", "evaluate" or "train".
        done: number of finished steps; 0 announces the stage.
        total: number of steps; 0 if unknown.
        detail: the layer or epoch just finished.
    """

    stage: str
    done: int
    total: int
    detail: str = ""


Progress: TypeAlias = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """Ignore the event."""
