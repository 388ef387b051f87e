"""Plots as Vega-Lite specifications, drawn by vl-convert (extra ``report``)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingExtraError

__all__ = ["PLOTS", "check_plot", "rate_chart", "rate_points", "render"]

PLOTS = (".png", ".svg", ".html")
_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"


def rate_chart(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chart of ``Sweep.to_dict()``: score against bytes, one line per method."""
    points = rate_points(sweep)
    size = {"field": "bytes", "type": "quantitative", "scale": {"type": "log", "nice": False}}
    score = {"field": "score", "type": "quantitative", "scale": {"zero": False}}
    lines = {
        "data": {"values": points},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {**size, "title": "bytes of the file"},
            "y": {**score, "title": "score"},
            "color": {"field": "method", "type": "nominal"},
        },
    }
    exact = {
        "data": {"values": [{"score": sweep["float"]["score"]}]},
        "mark": {"type": "rule", "strokeDash": [4, 4], "color": "gray"},
        "encoding": {"y": score},
    }
    chart = {"$schema": _SCHEMA, "width": 480, "height": 320, "layer": [exact, lines]}
    return {**chart, "title": "Accuracy over bytes; dashed: float32"}


def rate_points(sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return "method", "bytes" and "score" of the points of ``Sweep.to_dict()`` that have both."""
    return [
        {
            "method": point["settings"].get("method", "") + _searched(point.get("goal")),
            "bytes": point["bytes"],
            "score": point["score"],
        }
        for point in sweep["points"]
        if point.get("bytes") is not None and point.get("score") is not None
    ]


def _searched(goal: Mapping[str, Any] | None) -> str:
    if goal is None:
        return ""
    return " to a drop" if goal.get("kind") == "max_drop" else " to a size"


def check_plot(path: Path) -> None:
    """Check that a plot can be drawn, before any work is done.

    Raises:
        ConfigError: ``path`` does not end in .png, .svg or .html.
        MissingExtraError: vl-convert is not installed.
    """
    if path.suffix not in PLOTS:
        raise ConfigError(f"plot {str(path)!r} must end in one of {', '.join(PLOTS)}.")
    _library()


def render(chart: Mapping[str, Any], path: Path) -> bytes:
    """Return the content of the image or page that ``path`` names."""
    library = _library()
    if path.suffix == ".png":
        picture: bytes = library.vegalite_to_png(vl_spec=dict(chart), scale=2)
        return picture
    if path.suffix == ".svg":
        return str(library.vegalite_to_svg(vl_spec=dict(chart))).encode()
    return str(library.vegalite_to_html(vl_spec=dict(chart), bundle=True)).encode()


def _library() -> Any:
    try:
        return importlib.import_module("vl_convert")
    except ModuleNotFoundError as error:
        raise MissingExtraError("vl-convert-python", "report", "drawing a plot") from error
