"""The options of a budget: sizes, drops and durations as people write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ...errors import shorten
from .metric import drop_of

__all__ = [
    "Evaluations",
    "MaxDrop",
    "Selection",
    "TargetBits",
    "TargetSize",
    "TimeBudget",
    "TraceFile",
    "Wanted",
    "as_bytes",
    "as_drop",
    "as_seconds",
]

_PANEL = "Budget (instead of a setting)"
_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SECONDS = {"": 1, "S": 1, "M": 60, "MIN": 60, "H": 3600}

TargetSize: TypeAlias = Annotated[
    str | None,
    typer.Option(help="At most these bytes: 66200, 100KB, 0.1MB, 64KiB.", rich_help_panel=_PANEL),
]
TargetBits: TypeAlias = Annotated[
    float | None,
    typer.Option(help="At most these bits of the file per weight.", rich_help_panel=_PANEL),
]
MaxDrop: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Smallest file with at most this drop of accuracy on the selection split: 0.5% "
        "(points).",
        rich_help_panel=_PANEL,
    ),
]
Selection: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Labelled data that the search judges on: neither calibration nor test. \\[default: "
        "half of the training part, where --data can divide it]",
        rich_help_panel=_PANEL,
    ),
]
Evaluations: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Networks tried at most.", rich_help_panel=_PANEL)
]
TimeBudget: TypeAlias = Annotated[
    str | None, typer.Option(help="Time for the search: 90s, 10m, 2h.", rich_help_panel=_PANEL)
]
TraceFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        help="JSON file of what was tried; an existing one is resumed.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class Wanted:
    """A budget as asked for on the command line; false where there is none."""

    target_size: str | None = None
    target_bits: float | None = None
    max_drop: str | None = None
    selection: str | None = None
    evaluations: int = 12
    time_budget: str | None = None
    trace: Path | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        asked = (self.target_size, self.target_bits, self.max_drop)
        if sum(value is not None for value in asked) > 1:
            raise typer.BadParameter(
                "one budget at a time: --target-size, --target-bits or --max-drop."
            )
        for option, value in (
            ("selection", self.selection),
            ("time-budget", self.time_budget),
            ("trace", self.trace),
            ("metric", self.metric),
        ):
            if value is not None and not self:
                raise typer.BadParameter(
                    f"--{option} belongs to a search: add --target-size, --target-bits or "
                    "--max-drop."
                )
        if self.metric is not None and not self.judges:
            raise typer.BadParameter("--metric judges: add --max-drop or --selection.")
        if self.target_bits is not None and not 0 < self.target_bits < math.inf:
            raise typer.BadParameter(f"--target-bits takes a number > 0. Got {self.target_bits}.")
        self.settings()  # read now, before any work is done

    def __bool__(self) -> bool:
        """Tell whether there is a budget."""
        return any(v is not None for v in (self.target_size, self.target_bits, self.max_drop))

    @property
    def judges(self) -> bool:
        """Whether every network that is tried is evaluated too."""
        return self.max_drop is not None or self.selection is not None

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`fewbits.compress`, but for ``evaluate``."""
        if not self:
            return {}
        return {
            "target_bytes": None if self.target_size is None else as_bytes(self.target_size),
            "target_bits": self.target_bits,
            "max_drop": None
            if self.max_drop is None
            else drop_of(self.metric, self.max_drop, as_drop),
            "evaluations": self.evaluations,
            "seconds": None if self.time_budget is None else as_seconds(self.time_budget),
            "trace": self.trace,
        }


def as_bytes(text: str, option: str = "--target-size") -> int:
    """Read a size: KB is 1,000 bytes, KiB 1,024."""
    number = _number(text, _SIZES)
    if number is None or number < 1:
        raise typer.BadParameter(f"{option} takes bytes: 66200, 100KB, 0.1MB. Got {shorten(text)}.")
    return int(number)


def as_drop(text: str) -> float:
    """Read a drop in points of accuracy, as a fraction: 0.5% or 0.005."""
    number = _number(text.removesuffix("%"), {"": 1})
    share = None if number is None else number / (100 if text.endswith("%") else 1)
    if share is None or not 0 <= share <= 1:
        raise typer.BadParameter(f"--max-drop takes points of accuracy: 0.5%. Got {shorten(text)}.")
    if share >= 0.1 and not text.endswith("%"):
        raise typer.BadParameter(
            f"--max-drop {text} means {share:.0%} of all samples. Write {text}% for {text} points, "
            f"or {100 * share:g}% if you mean it."
        )
    return share


def as_seconds(text: str) -> float:
    """Read a duration: 90s, 10m, 2h."""
    number = _number(text, _SECONDS)
    if number is None or number <= 0:
        raise typer.BadParameter(
            f"--time-budget takes a duration: 90s, 10m, 2h. Got {shorten(text)}."
        )
    return number


def _number(text: str, units: dict[str, int]) -> float | None:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in units:
        return None
    return float(match[1]) * units[match[2].upper()]
