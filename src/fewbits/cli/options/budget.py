"""The options of a budget: sizes, drops and durations as people write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ...errors import ConfigError
from ...search import as_bytes, as_drop, as_seconds
from .metric import drop_of

__all__ = [
    "Evaluations",
    "MaxDrop",
    "Selection",
    "TargetBits",
    "TargetBytes",
    "TimeBudget",
    "TraceFile",
    "Wanted",
    "quantity",
]

_PANEL = "Budget (instead of a setting)"

TargetBytes: TypeAlias = Annotated[
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

    target_bytes: str | None = None
    target_bits: float | None = None
    max_drop: str | None = None
    selection: str | None = None
    evaluations: int = 12
    time_budget: str | None = None
    trace: Path | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        asked = (self.target_bytes, self.target_bits, self.max_drop)
        if sum(value is not None for value in asked) > 1:
            raise typer.BadParameter(
                "one budget at a time: --target-bytes, --target-bits or --max-drop."
            )
        for option, value in (
            ("selection", self.selection),
            ("time-budget", self.time_budget),
            ("trace", self.trace),
            ("metric", self.metric),
        ):
            if value is not None and not self:
                raise typer.BadParameter(
                    f"--{option} belongs to a search: add --target-bytes, --target-bits or "
                    "--max-drop."
                )
        if self.metric is not None and not self.judges:
            raise typer.BadParameter("--metric judges: add --max-drop or --selection.")
        if self.target_bits is not None and not 0 < self.target_bits < math.inf:
            raise typer.BadParameter(f"--target-bits takes a number > 0. Got {self.target_bits}.")
        self.settings()  # read now, before any work is done

    def __bool__(self) -> bool:
        """Tell whether there is a budget."""
        return any(v is not None for v in (self.target_bytes, self.target_bits, self.max_drop))

    @property
    def judges(self) -> bool:
        """Whether every network that is tried is evaluated too."""
        return self.max_drop is not None or self.selection is not None

    def _read(self, read: Callable[[object, str], float], name: str) -> float | None:
        text: str | None = getattr(self, name)
        return None if text is None else quantity(read, text, "--" + name.replace("_", "-"))

    def _drop(self) -> float | None:
        if self.max_drop is None:
            return None
        return drop_of(
            self.metric, self.max_drop, lambda text: quantity(as_drop, text, "--max-drop")
        )

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`fewbits.compress`, but for ``evaluate``."""
        if not self:
            return {}
        return {
            "target_bytes": self._read(as_bytes, "target_bytes"),
            "target_bits": self.target_bits,
            "max_drop": self._drop(),
            "evaluations": self.evaluations,
            "time_budget": self._read(as_seconds, "time_budget"),
            "trace": self.trace,
        }


def quantity(read: Callable[[object, str], float], text: str, option: str) -> float:
    """Return what ``read`` makes of an option's text.

    Raises:
        typer.BadParameter: it makes nothing of it.
    """
    try:
        return read(text, option)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
