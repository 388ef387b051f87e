"""Stages of low-bit training: the widths of weights and activations over time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ....errors import ConfigError, require

__all__ = ["FLOAT", "SCHEDULES", "Stage", "stage_at", "stages_of"]

FLOAT = 32  # the width that means float
_DOWN = (8, 4, 2, 1)

SCHEDULES = {
    "direct": "the final widths from the start",
    "two_stage": "weights first, then activations too (Zhuang et al. 2018)",
    "activations_first": "activations first, then weights too, for comparison",
    "progressive": "both through 8, 4 and 2 bits down to the final widths (Zhuang et al. 2018)",
    "two_stage_progressive": "weights down step by step, then activations",
    "stochastic": "final widths for random layers, more and more of them (a reconstruction)",
}
_ENTRY = re.compile(r"\s*(\d+)\s*/\s*(\d+)\s*(?:\*\s*([0-9.]+)\s*)?")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        weights: bits of weights; 32 for floats.
        activations: bits of activations; 32 for floats.
        until: share of the training at which it ends.
    """

    weights: int
    activations: int
    until: float


def stages_of(schedule: str, weights: int, activations: int) -> tuple[Stage, ...]:
    """Return the stages of a schedule that ends at the given widths.

    Args:
        schedule: a name in ``SCHEDULES``, whose stages have the same length, or a list such as
            "2/32, 2/4*0.5, 2/2": bits of weights / activations, and optionally * relative length.
        weights: final bits of weights.
        activations: final bits of activations.

    Raises:
        ConfigError: the schedule is unknown, invalid, or ends at other widths.
    """
    require(isinstance(schedule, str), "schedule", "a name or a list of stages", schedule)
    if schedule not in SCHEDULES:
        return _listed(schedule, weights, activations)
    down_w, down_a = _down(weights), _down(activations)
    pairs = {
        "direct": [(weights, activations)],
        "stochastic": [(weights, activations)],
        "two_stage": [(weights, FLOAT), (weights, activations)],
        "activations_first": [(FLOAT, activations), (weights, activations)],
        "progressive": _together(down_w, down_a),
        "two_stage_progressive": [(w, FLOAT) for w in down_w] + [(weights, a) for a in down_a],
    }[schedule]
    return _timed([(w, a, 1.0) for w, a in dict.fromkeys(pairs)])


def stage_at(stages: Sequence[Stage], progress: float) -> int:
    """Return the position of the stage at ``progress``, the finished share of the training."""
    return next((k for k, stage in enumerate(stages) if progress < stage.until), len(stages) - 1)


def _down(bits: int) -> list[int]:
    return [b for b in _DOWN if b > bits] + [bits] if bits < FLOAT else [FLOAT]


def _together(weights: list[int], activations: list[int]) -> list[tuple[int, int]]:
    longest = max(len(weights), len(activations))
    weights = weights + weights[-1:] * (longest - len(weights))
    activations = activations + activations[-1:] * (longest - len(activations))
    return list(zip(weights, activations, strict=True))


def _listed(schedule: str, weights: int, activations: int) -> tuple[Stage, ...]:
    entries = [_ENTRY.fullmatch(entry) for entry in schedule.split(",")]
    if not all(entries):
        raise ConfigError(
            f"schedule {schedule!r} is neither one of {', '.join(SCHEDULES)}, nor a list of stages "
            "such as '8/8, 4/4, 2/2*0.5' (bits of weights / activations, * relative length)."
        )
    timed = [(int(m[1]), int(m[2]), float(m[3] or 1)) for m in entries if m is not None]
    for w, a, length in timed:
        sound = all(1 <= b <= 8 or b == FLOAT for b in (w, a)) and length > 0
        require(sound, "schedule", "widths from 1 to 8, or 32, and lengths above 0", schedule)
    if timed[-1][:2] != (weights, activations):
        raise ConfigError(
            f"the last stage of schedule {schedule!r} must have the final widths, "
            f"{weights}/{activations}."
        )
    if any(one[:2] == other[:2] for one, other in pairwise(timed)):
        raise ConfigError(f"schedule {schedule!r} has two equal stages in a row. Merge them.")
    return _timed(timed)


def _timed(stages: list[tuple[int, int, float]]) -> tuple[Stage, ...]:
    total = sum(length for _, _, length in stages)
    done, timed = 0.0, []
    for w, a, length in stages:
        done += length
        timed.append(Stage(w, a, done / total))
    return (*timed[:-1], Stage(timed[-1].weights, timed[-1].activations, 1.0))
