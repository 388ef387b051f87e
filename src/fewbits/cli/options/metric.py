"""The option that names the metric to evaluate networks by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import typer

from ...errors import shorten

__all__ = ["Metric", "drop_of", "known_metric"]

Metric: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Metric of the drop: accuracy, loss or another. \\[default: accuracy]",
        rich_help_panel="Budget (instead of a setting)",
    ),
]


def known_metric(name: str) -> Any:
    """Return the metric called ``name``.

    Raises:
        typer.BadParameter: unknown metric; the message lists the valid ones.
    """
    from ...evaluation import METRICS  # noqa: PLC0415  (brings torch)

    if name not in METRICS:
        raise typer.BadParameter(f"--metric: {METRICS.unknown(name)}")
    return METRICS[name]


def drop_of(metric: str | None, text: str, as_points: Callable[[str], float]) -> float:
    """Parse a drop: percentage points for shares such as accuracy, else a number of that unit."""
    if metric is None or known_metric(metric).unit == "%":
        return as_points(text)
    try:
        drop = float(text)
    except ValueError:
        drop = -1.0
    if not 0 <= drop < float("inf"):
        raise typer.BadParameter(
            f"--max-drop takes a number for {metric}, such as 0.05. Got {shorten(text)}."
        )
    return drop
