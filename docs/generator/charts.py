"""Charts as Vega-Lite specifications, and the SVG files that are made of them.

Every picture begins with a comment that holds the digest of its specification, so that whether it
is current can be told where the package that draws (vl-convert) is not installed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "BLUE",
    "COLOURS",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PURPLE",
    "RED",
    "axis",
    "chart",
    "drawn",
    "is_current",
    "rule",
]

Spec = dict[str, Any]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
INK, GREY = "#24292f", "#7d8590"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY, BROWN = "#aa4499", "#56b4e9", "#8c6d31"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BROWN, GREY)
_FONT = "Helvetica, Arial, sans-serif"
_CONFIG: Spec = {
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "gridColor": "#e6e8eb",
        "domainColor": GREY,
        "tickColor": GREY,
        "titlePadding": 8,
        "labelLimit": 320,
    },
    "legend": {
        "labelColor": INK,
        "labelFontSize": 12,
        "labelLimit": 320,
        "title": None,
        "symbolOpacity": 1,
    },
    "header": {"labelColor": INK, "labelFontSize": 12, "title": None},
    "title": {
        "anchor": "start",
        "color": INK,
        "fontSize": 15,
        "subtitleColor": "#57606a",
        "subtitleFontSize": 12,
        "subtitlePadding": 4,
        "offset": 12,
    },
}


def chart(title: str, subtitle: Sequence[str], body: Mapping[str, Any]) -> Spec:
    """Return a whole specification: white behind it, so that it is legible on a dark page too."""
    return {
        "$schema": _SCHEMA,
        "background": "white",
        "padding": 14,
        "config": _CONFIG,
        "title": {"text": title, "subtitle": [line for line in subtitle if line]},
        "width": 560,
        "height": 340,
        **body,
    }


def axis(
    field: str,
    title: str | None,
    kind: str = "quantitative",
    *,
    domain: Sequence[float] | None = None,
    log: bool = False,
    values: Sequence[float] | None = None,
    **more: Any,
) -> Spec:
    """Return the encoding of a position."""
    scale: Spec = {"type": "log", "nice": False, "padding": 8} if log else {}
    if kind == "quantitative" and not log:
        scale["zero"] = False
    if domain is not None:
        scale |= {"domain": list(domain), "nice": False, "padding": 0}
    told: Spec = {"title": title, **more}
    if values is not None:
        told["values"] = list(values)
    return {"field": field, "type": kind, "axis": told, **({"scale": scale} if scale else {})}


def rule(value: float, label: str, y: Mapping[str, Any], at: float) -> list[Spec]:
    """Return a dashed horizontal line with its label, the accuracy in float32 as a rule."""
    data = {"values": [{"rule": value, "label": label}]}
    where = {**y, "field": "rule"}
    line = {"type": "rule", "strokeDash": [5, 4], "color": GREY}
    text = {"type": "text", "align": "left", "dy": -8, "color": "#57606a", "fontSize": 12}
    return [
        {"data": data, "mark": line, "encoding": {"y": where}},
        {
            "data": data,
            "mark": text,
            "encoding": {"y": where, "x": {"value": at}, "text": {"field": "label"}},
        },
    ]


def drawn(spec: Mapping[str, Any]) -> str:
    """Draw a chart; the same specification and version of vl-convert give the same text."""
    try:
        library = importlib.import_module("vl_convert")
    except ModuleNotFoundError as error:
        raise SystemExit("pictures need vl-convert: pip install -e '.[docs]'") from error
    svg = str(library.vegalite_to_svg(vl_spec=dict(spec)))
    numbers: dict[str, str] = {}  # vl-convert counts clips on from chart to chart

    def renumbered(found: re.Match[str]) -> str:
        return numbers.setdefault(found[0], f"clip{len(numbers) + 1}")

    svg = re.sub(r"\bclip\d+\b", renumbered, svg)
    svg = svg.replace(f'font-family="{_FONT}"', 'font-family="Helvetica, Arial, sans-serif"')
    return f"{_stamp(spec)}{svg}\n"


def is_current(path: Path, spec: Mapping[str, Any]) -> bool:
    """Return whether a picture was drawn from this specification."""
    return path.exists() and path.read_text(encoding="utf-8").startswith(_stamp(spec))


def _stamp(spec: Mapping[str, Any]) -> str:
    text = json.dumps(spec, sort_keys=True, ensure_ascii=False)
    return f"<!-- docs/build.py {hashlib.sha256(text.encode()).hexdigest()} -->\n"
