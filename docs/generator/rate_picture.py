"""The first picture: accuracy over file size, ResNet-20 on CIFAR-10."""

from __future__ import annotations

from statistics import mean
from typing import Any

from .charts import BLUE, GREEN, INK, ORANGE, PURPLE, RED, axis, chart, rule
from .records import from_old_coder, record

__all__ = ["SHOWN", "rate_accuracy"]

Spec = dict[str, Any]
Row = dict[str, Any]

# How a line looks and where its name stands, as offsets from the point of that number. The values
# are the records'.
_STYLES: dict[str, tuple[str, int, int, int, str]] = {
    "smallest": (BLUE, 3, -8, -10, "right"),
    "transform": (ORANGE, 0, 10, 8, "left"),
    "gpfq": (GREEN, 1, -12, 0, "right"),
    "gptq": (RED, 1, 12, 4, "left"),
    "nearest": (PURPLE, 1, 10, 4, "left"),
}
SHOWN = {
    "smallest": "smallest",
    "transform, entropy": "transform",
    "gpfq": "gpfq",
    "gptq": "gptq",
    "nearest": "nearest",
}
_STAR = (
    "M0,-1L0.29,-0.4L0.95,-0.31L0.48,0.15L0.59,0.81L0,0.5"
    "L-0.59,0.81L-0.48,0.15L-0.95,-0.31L-0.29,-0.4Z"
)
_X, _Y = (26_000, 135_000), (86.0, 92.4)
_SIZES = (30_000, 40_000, 50_000, 60_000, 80_000, 100_000, 130_000)


def rate_accuracy() -> Spec:
    """Return the chart of the records of rate_accuracy and hemp_resnet."""
    found, trained = record("rate_accuracy"), record("hemp_resnet")
    rows = [row for row in found["summary"] if row["network"] == "resnet20"]
    lines = [
        {"name": name, "bytes": row["file_bytes_mean"], "top": row["accuracy_mean"]}
        for method, name in SHOWN.items()
        for row in rows
        if row["method"] == method
    ]
    x = axis("bytes", "bytes of the whole file, kB", domain=_X, log=True, values=_SIZES)
    x["axis"]["labelExpr"] = "datum.value / 1000"
    y = axis("top", "top-1 on the 10,000 test images, %", domain=_Y)
    accuracy = found["float_accuracy"]["resnet20"]
    layers = [
        *rule(accuracy, f"float32: {accuracy:.2f} % in {_float_bytes():,.0f} kB", y, 6),
        *_peers(found, x, y),
        *_lines(lines, x, y),
        *_trained(trained, x, y),
    ]
    old = from_old_coder(found) or from_old_coder(trained)
    epochs = _runs(trained)[0]["settings"]["epochs"]
    seeds = len({row["seed"] for row in found["measured"]})
    subtitle = [
        f"All layers quantized, no labels, mean of {seeds} calibration seeds; "
        f"HEMP trains {epochs:.0f} epochs, with labels.",
        "Grey: other tools, as quoted in the record."
        + (" Files of fewbits: by the coder of format 1." if old else ""),
    ]
    title = "ResNet-20 on CIFAR-10: accuracy over the size of the file"
    return chart(title, subtitle, {"width": 640, "height": 380, "layer": layers})


def _lines(values: list[Row], x: Spec, y: Spec) -> list[Spec]:
    colours = {
        "field": "name",
        "type": "nominal",
        "scale": {"domain": list(_STYLES), "range": [style[0] for style in _STYLES.values()]},
        "legend": None,
    }
    inside = [row for row in values if row["top"] >= _Y[0] and row["bytes"] <= _X[1]]
    drawn = {
        "data": {"values": values},
        "mark": {"type": "line", "clip": True, "strokeWidth": 2.2},
        "encoding": {"x": x, "y": y, "color": colours},
    }
    dots = {
        "data": {"values": inside},
        "mark": {"type": "point", "filled": True, "size": 38, "opacity": 1},
        "encoding": {"x": x, "y": y, "color": colours},
    }
    return [drawn, dots, *(_name(inside, name, x, y) for name in _STYLES)]


def _name(values: list[Row], name: str, x: Spec, y: Spec) -> Spec:
    colour, place, dx, dy, align = _STYLES[name]
    points = sorted((r for r in values if r["name"] == name), key=lambda row: row["bytes"])
    mark = {"type": "text", "color": colour, "fontSize": 13, "fontWeight": "bold"}
    return {
        "data": {"values": [points[place]]},
        "mark": {**mark, "align": align, "dx": dx, "dy": dy},
        "encoding": {"x": x, "y": y, "text": {"field": "name"}},
    }


def _peers(found: Row, x: Spec, y: Spec) -> list[Spec]:
    """Points of other tools, as the record quotes them, in grey."""
    values = [
        {"name": name.partition(" (")[0], "bytes": size, "top": top}
        for name, known in found["peers"].items()
        for top, size in known
        if top >= _Y[0]
    ]
    names = list(dict.fromkeys(value["name"] for value in values))
    shapes = {
        "field": "name",
        "type": "nominal",
        "scale": {"domain": names, "range": ["square", "triangle-up", "diamond"][: len(names)]},
        "legend": {"orient": "bottom", "direction": "vertical", "symbolStrokeColor": "#6e7781"},
    }
    line = {"type": "line", "strokeDash": [3, 3], "color": "#8c959f", "strokeWidth": 1.2}
    point = {"type": "point", "filled": False, "color": "#6e7781", "size": 55, "opacity": 1}
    detail = {"field": "name", "type": "nominal"}
    return [
        {
            "data": {"values": values},
            "mark": {**line, "clip": True},
            "encoding": {"x": x, "y": y, "detail": detail},
        },
        {
            "data": {"values": values},
            "mark": point,
            "encoding": {"x": x, "y": y, "shape": shapes},
        },
    ]


def _trained(found: Row, x: Spec, y: Spec) -> list[Spec]:
    runs = _runs(found)
    values = [
        {
            "bytes": mean(run["file_bytes"] for run in runs),
            "top": mean(run["accuracy"]["test"] for run in runs),
            "name": "smallest, then HEMP",
        }
    ]
    text = {"type": "text", "align": "right", "dx": -12, "fontSize": 13, "fontWeight": "bold"}
    return [
        {
            "data": {"values": values},
            "mark": {"type": "point", "shape": _STAR, "size": 200, "filled": True, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": {"value": INK}},
        },
        {
            "data": {"values": values},
            "mark": {**text, "color": INK},
            "encoding": {"x": x, "y": y, "text": {"field": "name"}},
        },
    ]


def _runs(found: Row) -> list[Row]:
    return [run for run in found["runs"] if run["method"] == "resnet20, smallest"]


def _float_bytes() -> float:
    """Return the kB of all parameters and buffers, float32 here, that compression ratios are of."""
    run = record("resnet20_cifar10")["runs"][0]
    return float(run["compression_ratio"] * run["file_bytes"] / 1000)
