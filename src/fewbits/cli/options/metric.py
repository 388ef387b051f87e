"""The options that name what networks are evaluated by: a metric, and how the network is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ...errors import shorten

if TYPE_CHECKING:
    from ...engine.network.batches import Forward
    from ...evaluation.base import Measure

__all__ = ["ForwardName", "Metric", "as_points", "drop_of", "has_own_data", "known_forward",
           "known_metric"]  # fmt: skip

Metric: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Metric of the drop: accuracy, loss, perplexity or another; or module:callable, your "
        "function of the network and batches. \\[default: accuracy]",
        rich_help_panel="Budget (instead of a setting)",
    ),
]
ForwardName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--forward",
        help="module:callable, your function of the network and a batch that calls the network, "
        "and returns its logits.",
    ),
]


def known_metric(name: str) -> Measure:
    """Return the metric called ``name``, or the function that ``module:callable`` names.

    Raises:
        typer.BadParameter: unknown metric; the message lists the valid ones.
        SourceError: no such module or function.
    """
    from ...evaluation import METRICS, OwnMetric  # noqa: PLC0415  (brings torch)

    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        raise typer.BadParameter(
            f"--metric: {METRICS.unknown(name)} A metric of your own is module:callable."
        )
    return OwnMetric(name, _function(name, "--metric", "the network and batches"))


def has_own_data(name: str | None) -> bool:
    """Return whether a metric may bring its own data: if it is a function of one's own."""
    return name is not None and ":" in name


def known_forward(name: str | None) -> Forward | None:
    """Return the function that calls the network; None for the default call.

    Raises:
        typer.BadParameter: not ``module:callable``, or not a function of two arguments.
        SourceError: no such module or function.
    """
    if name is None:
        return None
    if ":" not in name:
        raise typer.BadParameter(f"--forward takes module:callable. Got {shorten(name)}.")
    return _function(name, "--forward", "the network and a batch")


def _function(name: str, option: str, arguments: str) -> Callable[[Any, Any], Any]:
    from ...sources.base.spec import parse  # noqa: PLC0415  (brings torch)
    from ...sources.module import load_callable, module_spec  # noqa: PLC0415

    found: Any = load_callable(module_spec(parse(name)))
    try:
        inspect.signature(found).bind(None, None)
    except TypeError:
        raise typer.BadParameter(
            f"{option} {name} must be a function of two arguments, {arguments}."
        ) from None
    except ValueError:
        pass  # some builtins have no signature
    return found  # type: ignore[no-any-return]


def as_points(metric: str | None) -> bool:
    """Return whether drops of a metric are given in percentage points: if it is a share."""
    return metric is None or known_metric(metric).unit == "%"


def drop_of(metric: str | None, text: str, points: Callable[[str], float]) -> float:
    """Parse a drop: percentage points for shares such as accuracy, else a number of that unit."""
    if as_points(metric):
        return points(text)
    try:
        drop = float(text)
    except ValueError:
        drop = -1.0
    if not 0 <= drop < float("inf"):
        raise typer.BadParameter(
            f"--max-drop takes a number for {metric}, such as 0.05. Got {shorten(text)}."
        )
    return drop
