"""Pictures of what the methods give: other networks, ablations, training."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from .charts import BLUE, COLOURS, GREEN, GREY, ORANGE, PURPLE, RED, axis, chart, rule
from .records import note, record

__all__ = [
    "fixed_widths",
    "gpfq_width",
    "hemp_mnist",
    "hemp_resnet",
    "low_bits",
    "mnist_radius",
    "noise",
    "other_networks",
    "transform_arms",
]

Spec = dict[str, Any]
Row = dict[str, Any]

_METHODS = (BLUE, ORANGE, GREEN, RED, PURPLE)
_TICKS = (3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200)


def coloured(
    field: str, order: list[str], orient: str = "right", colours: Sequence[str] = COLOURS
) -> Spec:
    """Return the encoding of a colour, in an order of our own."""
    scale = {"domain": order, "range": list(colours[: len(order)])}
    return {"field": field, "type": "nominal", "scale": scale, "legend": {"orient": orient}}


def lines(values: list[Row], x: Spec, y: Spec, colour: Spec) -> Spec:
    """Return lines with a point at every value."""
    return {
        "data": {"values": values},
        "mark": {"type": "line", "point": {"size": 36}, "clip": True, "strokeWidth": 2},
        "encoding": {"x": x, "y": y, "color": colour},
    }


def ranges(values: list[Row], x: Spec, y: Spec, colour: Spec, **more: Any) -> list[Spec]:
    """Return a point for each mean, and a line from "low" to "high" through it."""
    spread = {**x, "field": "low"}
    return [
        {
            "data": {"values": values},
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5},
            "encoding": {"x": spread, "x2": {"field": "high"}, "y": y, "color": colour, **more},
        },
        {
            "data": {"values": values},
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, **more},
        },
    ]


def other_networks() -> Spec:
    """ResNet-32 and LeNet-5: accuracy over bytes."""
    found = record("rate_accuracy")
    windows = {
        "resnet32": ("ResNet-32, CIFAR-10", 83, 93),
        "lenet5": ("LeNet-5, MNIST", 97.5, 99.3),
    }
    shown = ["smallest", "transform, entropy", "gpfq", "gptq", "nearest"]
    panels = []
    for network, (title, low, high) in windows.items():
        values = [
            {
                "method": row["method"],
                "kB": row["file_bytes_mean"] / 1000,
                "top": row["accuracy_mean"],
            }
            for row in found["summary"]
            if row["network"] == network and row["method"] in shown
        ]
        x = axis("kB", "file, kB", log=True, values=_TICKS)
        y = axis("top", "top-1, %", domain=(low, high))
        accuracy = found["float_accuracy"][network]
        layer = [
            *rule(accuracy, f"float32: {accuracy:.2f} %", y, 4),
            lines(values, x, y, coloured("method", shown, "bottom", _METHODS)),
        ]
        panels.append(_panel(title, (290, 260), layer))
    body: Spec = {"hconcat": panels, "spacing": 30}
    return _bare(chart("The same methods on two other networks", [note(found, "")], body))


def fixed_widths() -> Spec:
    """Top-1 of the methods with fixed bit widths."""
    found = record("resnet20_cifar10")
    rows = found["summary"]
    names = list(dict.fromkeys(row["method"] for row in rows))
    values = [
        {
            "method": row["method"],
            "top": row["accuracy_mean"],
            "low": row["accuracy_min"],
            "high": row["accuracy_max"],
            "width": f"{row['bits']} bits",
        }
        for row in rows
    ]
    x = axis("top", "top-1, % (mean and range over seeds)", domain=(0, 100))
    y = axis("method", None, "nominal", grid=True)
    y["sort"] = names
    layer = ranges(values, x, y, coloured("width", ["4 bits", "3 bits", "2 bits"]))
    body = {"height": 150, "layer": layer}
    return chart("ResNet-20, a fixed width for all layers", [note(found, "")], body)


def transform_arms() -> Spec:
    """What basis, feedback and rate are worth at one size."""
    found = record("transform_arms")
    size = max(row["budget"] for row in found["measured"])
    groups: dict[str, list[float]] = {}
    for row in found["measured"]:
        if row["budget"] == size:
            groups.setdefault(row["arm"], []).append(row["accuracy"])
    told = {
        "feedback, adaptive": "feedback and rate",
        "feedback, none": "feedback",
        "no feedback, adaptive": "rate",
        "no feedback, none": "neither",
    }
    values = []
    for arm, tops in groups.items():
        basis, _, rest = arm.partition(", ")
        means = {"top": mean(tops), "low": min(tops), "high": max(tops)}
        values.append({"basis": basis, "with": told[rest], **means})
    x = axis("top", "top-1, % (mean and range over seeds)", domain=(80, 92))
    y = axis("basis", None, "nominal", grid=True)
    y["sort"] = ["elt where it pays", "identity", "elt", "klt"]
    layer = ranges(values, x, y, coloured("with", list(told.values())))
    title = f"Transform, ResNet-20 at {size / 1000:.0f} kB"
    return chart(title, [note(found, "")], {"height": 170, "layer": layer})


def mnist_radius() -> Spec:
    """GPFQ and rounding by the radius of the alphabet, as in the paper."""
    found = record("mnist_mlp")
    values = [
        {"method": run["method"], "C": run["settings"]["clip"], "top": run["accuracy"]["test"]}
        for run in found["runs"]
        if "clip" in run["settings"]
    ]
    names = list(dict.fromkeys(row["method"] for row in values))
    x = axis("C", "radius C of the ternary alphabet, in medians", format="d", tickCount=10)
    y = axis("top", "top-1, %", domain=(0, 100))
    accuracy = found["float_accuracy"]["test"]
    layer = [
        *rule(accuracy, "", y, 4),
        lines(values, x, y, coloured("method", names)),
    ]
    told = f"Multilayer perceptron, ternary weights; dashed: float32, {accuracy:.2f} %."
    return chart(
        "GPFQ's experiment on MNIST", [told, note(found, "")], {"height": 240, "layer": layer}
    )


def gpfq_width() -> Spec:
    """Error of a ternary layer by its width: the theorem."""
    found = record("gpfq_width")
    slopes = {row["case"]: f"{row['case']}: slope {row['slope']:.2f}" for row in found["summary"]}
    values = [
        {"method": slopes[row["case"]], "width": row["width"], "error": 100 * row["error_mean"]}
        for row in found["measured"]
    ]
    x = axis("width", "inputs of a neuron", log=True, values=[r["width"] for r in values][:7])
    y = axis("error", "error of the outputs, %", log=True, values=(2, 5, 10, 20, 50))
    layer = [lines(values, x, y, coloured("method", list(slopes.values())))]
    told = "Ternary weights, 64 Gaussian rows, mean of 3 seeds. The theorem: a slope of -0.5."
    return chart("GPFQ's theorem", [told, note(found, "")], {"height": 240, "layer": layer})


def hemp_resnet() -> Spec:
    """What training after `smallest` gives: bytes and top-1 of every run."""
    found = record("hemp_resnet")
    told = {
        "start": "smallest, not trained",
        "smallest": "HEMP after smallest",
        "control": "the same training, no entropy term",
        "float": "HEMP from the float network",
    }
    values = [
        {
            "network": run["method"].partition(", ")[0].replace("resnet", "ResNet-"),
            "kind": told[run["method"].partition(", ")[2]],
            "kB": run["file_bytes"] / 1000,
            "top": run["accuracy"]["test"],
        }
        for run in found["runs"]
    ]
    x = axis("kB", "file, kB")
    y = axis("top", "top-1, %")
    point = {"type": "point", "filled": True, "size": 90, "opacity": 0.85}
    shape = {"field": "network", "type": "nominal", "legend": {"orient": "right"}}
    encoding = {"x": x, "y": y, "color": coloured("kind", list(told.values())), "shape": shape}
    body = {"height": 260, "data": {"values": values}, "mark": point, "encoding": encoding}
    return chart("HEMP, CIFAR-10: every run", [note(found, "")], body)


def hemp_mnist() -> Spec:
    """Errors over bytes on MNIST, beside what the goals are."""
    found = record("hemp_mnist")
    names = {"lenet_300_100": "LeNet-300-100", "lenet_5": "LeNet-5"}
    values = [
        {
            "network": names[row["network"]],
            "entropy": row["term"].replace("none", "no entropy term"),
            "start": f"{row['start']} start",
            "kB": row["file_bytes_mean"] / 1000,
            "error": row["test_error_mean"],
        }
        for row in found["summary"]
    ]
    goals = {
        names[row["network"]]: (row["goal"]["bytes_at_most"], row["goal"]["error_at_most"])
        for row in found["summary"]
    }
    wanted = [{"network": n, "kB": b / 1000, "error": e} for n, (b, e) in goals.items()]
    panels = [_panel(network, (280, 240), _errors(network, values, wanted)) for network in goals]
    told = "Means over seeds. Grey cross: the published file (Oktay et al. 2020)."
    return _bare(chart("HEMP, MNIST", [told, note(found, "")], {"hconcat": panels, "spacing": 30}))


def _errors(network: str, values: list[Row], wanted: list[Row]) -> list[Spec]:
    x = axis("kB", "file, kB", log=True, values=_TICKS)
    y = axis("error", "test error, %")
    colours = coloured("entropy", ["order 1", "order 2", "order 3", "no entropy term"], "bottom")
    shape = {"field": "start", "type": "nominal", "legend": {"orient": "bottom"}}
    here = [row for row in values if row["network"] == network]
    goal = [row for row in wanted if row["network"] == network]
    point = {"type": "point", "filled": True, "size": 80, "opacity": 0.9}
    cross = {"type": "point", "shape": "cross", "filled": True, "size": 160, "color": GREY}
    encoding = {"x": x, "y": y, "color": colours, "shape": shape}
    return [
        {"data": {"values": goal}, "mark": cross, "encoding": {"x": x, "y": y}},
        {"data": {"values": here}, "mark": point, "encoding": encoding},
    ]


def noise() -> Spec:
    """What noise on the weights does to networks trained with and without it."""
    found = record("pwfn_resnet")
    shown = {
        "pwfn": "PWFN",
        "noisy": "trained with noise, nothing fixed",
        "plain": "trained plainly, float",
        "rounded": "trained plainly, rounded",
        "pwfn constant": "one constant deviation",
    }
    values = []
    for row in found["summary"]:
        if row["kind"] in shown:
            label = f"{shown[row['kind']]}, {row['file_bytes'] / 1000:,.0f} kB"
            start = {"kind": label, "noise": 0.0, "top": row["accuracy"]}
            values.append(start)
            values += [
                {"kind": label, "noise": float(size), "top": 100 * top}
                for size, top in row["noise"].items()
                if float(size)
            ]
    names = list(dict.fromkeys(row["kind"] for row in values))
    sizes = sorted({row["noise"] for row in values})
    x = axis("noise", "standard deviation of the noise on every weight", values=sizes)
    y = axis("top", "top-1, %", domain=(30, 95))
    body = {"height": 260, "layer": [lines(values, x, y, coloured("kind", names))]}
    return chart("PWFN, ResNet-20 under noise", [note(found, "")], body)


def low_bits() -> Spec:
    """Schedules of low-bit training, beside Brevitas."""
    ours, theirs = record("lowbit_resnet"), record("brevitas_qat")
    values = _schedules(ours, theirs)
    colour = {
        "field": "tool",
        "type": "nominal",
        "scale": {"domain": ["fewbits", "Brevitas"], "range": [BLUE, ORANGE]},
        "legend": {"orient": "bottom"},
    }
    panels, hidden = [], []
    for width, low, high in (("W4A4", 85, 92), ("W2A2", 78, 88)):
        here = sorted((v for v in values if v["width"] == width), key=lambda row: -row["top"])
        shown = [row for row in here if row["top"] >= low]
        hidden += [f"{row['kind']} at {width} ({row['top']:.1f} %)" for row in here[len(shown) :]]
        y = axis("kind", None, "nominal", grid=True)
        y["sort"] = [row["kind"] for row in shown]
        x = axis("top", "top-1, %", domain=(low, high))
        panels.append(_panel(width, (200, 220), ranges(shown, x, y, colour)))
    told = (
        "Mean and range over one or two seeds, 3 epochs each; joint training takes twice the time."
    )
    lines_below = [told, f"Not shown: {', '.join(hidden)}. {note(ours, '')}"]
    body: Spec = {"hconcat": panels, "spacing": 30}
    spec = chart("Low-bit training, ResNet-20", lines_below, body)
    return _bare(spec)


def _schedules(ours: Row, theirs: Row) -> list[Row]:
    rows = [(row, row["kind"], "fewbits") for row in ours["summary"]]
    rows += [(row, f"Brevitas, {row['kind']} scale", "Brevitas") for row in theirs["summary"]]
    return [
        {
            "kind": kind,
            "tool": tool,
            "width": f"W{row['bits']}A{row['bits']}",
            "top": row["accuracy_mean"],
            "low": min(row["accuracy"]),
            "high": max(row["accuracy"]),
        }
        for row, kind, tool in rows
    ]


def _panel(title: str, size: tuple[int, int], layer: list[Spec]) -> Spec:
    """Return one of several charts side by side."""
    width, height = size
    named = {"text": title, "fontSize": 13}
    return {"title": named, "width": width, "height": height, "layer": layer}


def _bare(spec: Spec) -> Spec:
    """Return a specification of several panels, whose sizes are their own."""
    return {key: value for key, value in spec.items() if key not in ("width", "height")}
