"""The option that names what networks are judged by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import typer

from ...errors import shorten

__all__ = ["Metric", "drop_of", "known_metric"]

Metric: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Of the drop: accuracy, loss or another. \\[default: accuracy]",
        rich_help_panel="Budget (instead of a setting)",
    ),
]


def known_metric(name: str) -> Any:
    """Return the metric of this name.

    Raises:
        typer.BadParameter: unknown; the message lists the known ones.
    """
    from ...evaluation import METRICS  # noqa: PLC0415  (brings torch)

    if name not in METRICS:
        raise typer.BadParameter(f"--metric: {METRICS.unknown(name)}")
    return METRICS[name]


def drop_of(metric: str | None, text: str, as_points: Callable[[str], float]) -> float:
    """Read a drop: in points of a share such as accuracy, else a number in the metric's unit."""
    if metric is None or known_metric(metric).unit == "%":
        return as_points(text)
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise typer.BadParameter(
            f"--max-drop takes a figure of {metric}: 0.05. Got {shorten(text)}."
        )
    return found
