"""Budget options: sizes, drops and durations as people write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ...errors import ConfigError
from ...search import as_bytes, as_drop, as_seconds
from .metric import drop_of

__all__ = [
    "BudgetOptions",
    "Evaluations",
    "MaxDrop",
    "Selection",
    "TargetBits",
    "TargetBytes",
    "TimeBudget",
    "TraceFile",
    "quantity",
]

_PANEL = "Budget (instead of a setting)"

TargetBytes: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Largest size of the file: 66200 (bytes), 100KB, 0.1MB or 64KiB.",
        rich_help_panel=_PANEL,
    ),
]
TargetBits: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Largest size of the file in bits per weight, everything counted.",
        rich_help_panel=_PANEL,
    ),
]
MaxDrop: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Find the smallest file that loses at most this much accuracy on the selection "
        "split: 0.5% means half a percentage point.",
        rich_help_panel=_PANEL,
    ),
]
Selection: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Labelled data to evaluate candidates on; use neither calibration nor test data. "
        "\\[default: half of the training split, where --data allows it]",
        rich_help_panel=_PANEL,
    ),
]
Evaluations: TypeAlias = Annotated[
    int,
    typer.Option(min=1, help="Largest number of networks to try.", rich_help_panel=_PANEL),
]
TimeBudget: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Longest time to search: 90s, 10m, 2h.", rich_help_panel=_PANEL),
]
TraceFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        help="JSON file that records the search; resumes the search if the file exists.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class BudgetOptions:
    """The budget given on the command line; falsy if there is none."""

    target_bytes: str | None = None
    target_bits: float | None = None
    max_drop: str | None = None
    selection: str | None = None
    evaluations: int = 12
    time_budget: str | None = None
    trace: Path | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        limits = (self.target_bytes, self.target_bits, self.max_drop)
        if sum(value is not None for value in limits) > 1:
            raise typer.BadParameter(
                "give one budget only: --target-bytes, --target-bits or --max-drop."
            )
        for option, value in (
            ("selection", self.selection),
            ("time-budget", self.time_budget),
            ("trace", self.trace),
            ("metric", self.metric),
        ):
            if value is not None and not self:
                raise typer.BadParameter(
                    f"--{option} only applies to a search: add --target-bytes, --target-bits or "
                    "--max-drop."
                )
        if self.metric is not None and not self.needs_evaluation:
            raise typer.BadParameter(
                "--metric only applies to a search that evaluates: add --max-drop or --selection."
            )
        if self.target_bits is not None and not 0 < self.target_bits < math.inf:
            raise typer.BadParameter(f"--target-bits takes a number > 0. Got {self.target_bits}.")
        self.settings()  # parsed now, so that errors show before any work is done

    def __bool__(self) -> bool:
        """Return whether a budget was given."""
        return any(v is not None for v in (self.target_bytes, self.target_bits, self.max_drop))

    @property
    def needs_evaluation(self) -> bool:
        """Whether the search must evaluate every network that it tries."""
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

    def told(self) -> dict[str, object]:
        """Return what was given, by name, for people."""
        if not self:
            return {}
        return {f.name.replace("_", " "): getattr(self, f.name) for f in fields(self)}

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`fewbits.compress`, except ``evaluate``."""
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
    """Parse the text of an option with ``read``.

    Raises:
        typer.BadParameter: ``read`` cannot parse it.
    """
    try:
        return read(text, option)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
