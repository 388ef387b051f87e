"""Pictures of what things cost: coding, loading, calibrating, training steps, ONNX."""

from __future__ import annotations

from typing import Any

from .charts import BLUE, GREY, ORANGE, axis, chart
from .method_pictures import coloured
from .records import record

__all__ = ["coders", "coders_by_network", "loading", "memory", "onnx_time", "step_cost"]

Spec = dict[str, Any]
Row = dict[str, Any]

_OURS = ("fast", "balanced", "smallest")
_PEERS = ("xz -9e", "zstd -22", "brotli 11", "zpaq -m5", "nncodec")


def bars(values: list[Row], x: Spec, y: Spec, colour: Spec, text: str) -> list[Spec]:
    """Return bars with their values at the end."""
    data = {"values": values}
    mark = {"type": "text", "align": "left", "dx": 4, "fontSize": 11}
    return [
        {"data": data, "mark": {"type": "bar"}, "encoding": {"x": x, "y": y, "color": colour}},
        {"data": data, "mark": mark, "encoding": {"x": x, "y": y, "text": {"field": text}}},
    ]


def coders() -> Spec:
    """All indices of nine networks: bytes of each coder over CPU seconds of decoding."""
    found = record("coding")
    rows = found["networks"]
    entropy = sum(row["index_bytes"]["order-0 entropy"] for row in rows)
    values = []
    for name in (*_OURS, *_PEERS):
        peer = name in _PEERS
        seconds = sum(
            row["peer_seconds"][name][1] if peer else row["files"][name]["decode_seconds"]
            for row in rows
        )
        size = sum(row["index_bytes"][name] for row in rows)
        told = {"name": name, "kind": "other coders" if peer else "fewbits"}
        values.append({**told, "seconds": seconds, "share": 100 * size / entropy})
    ticks = (0.1, 0.3, 1, 3, 10, 30, 100)
    title = "decoding everything, CPU seconds"
    x = axis("seconds", title, log=True, domain=(0.05, 200), values=ticks)
    y = axis("share", "bytes over order-0 entropy, %")
    colour = coloured("kind", ["fewbits", "other coders"], "bottom", (BLUE, GREY))
    data = {"values": values}
    text = {"type": "text", "dy": -11, "fontSize": 12}
    point = {"type": "point", "filled": True, "size": 80, "opacity": 1}
    layer = [
        {"data": data, "mark": point, "encoding": {"x": x, "y": y, "color": colour}},
        {
            "data": data,
            "mark": text,
            "encoding": {"x": x, "y": y, "text": {"field": "name"}, "color": colour},
        },
    ]
    told = f"The same integers for every coder: {len(rows)} networks and widths. Lower is smaller."
    return chart("Coders: bytes over time to decode", [told], {"height": 280, "layer": layer})


def coders_by_network() -> Spec:
    """What the smallest effort saves of the strongest peer's bytes, by network."""
    values = []
    for row in record("coding")["networks"]:
        sizes = row["index_bytes"]
        values.append(
            {
                "network": row["network"],
                "width": f"{row['bits']} bits",
                "saved": 100 * (1 - sizes["smallest"] / sizes["nncodec"]),
            }
        )
    x = axis("saved", "fewer bytes than nncodec, %", domain=(0, 15))
    y = axis("network", None, "nominal", grid=True)
    y["sort"] = list(dict.fromkeys(row["network"] for row in values))
    colour = coloured("width", ["2 bits", "3 bits", "4 bits", "5 bits"])
    point = {"type": "point", "filled": True, "size": 70, "opacity": 0.9}
    encoding = {"x": x, "y": y, "color": colour}
    body = {"height": 240, "data": {"values": values}, "mark": point, "encoding": encoding}
    told = "Effort `smallest`, the same indices; nncodec codes with DeepCABAC."
    return chart("Indices beside nncodec's coder", [told.replace("`", "")], body)


def loading() -> Spec:
    """Seconds until 25 million weights are there."""
    found = record("loading")["loading"]
    ways = {
        "state dict": "state_dict",
        "state dict, two threads": "state_dict_by_two",
        "into a network": "into_network",
        "into a network, two threads": "into_network_by_two",
        "one tensor": "one_tensor",
        "safetensors": "safetensors",
    }
    values = [
        {
            "way": way,
            "seconds": found["seconds"][key],
            "told": f"{found['seconds'][key]:.3f}",
            "kind": "safetensors" if key == "safetensors" else "fewbits",
        }
        for way, key in ways.items()
    ]
    x = axis("seconds", "seconds", domain=(0, 0.26))
    y = axis("way", None, "nominal")
    y["sort"] = list(ways)
    colour = coloured("kind", ["fewbits", "safetensors"], "bottom", (BLUE, GREY))
    ours, theirs = found["file_bytes"] / 1e6, found["safetensors_bytes"] / 1e6
    told = (
        f"{found['weights'] / 1e6:.1f} million weights at 4 bits: {ours:.1f} MB, as safetensors "
        f"{theirs:.1f} MB."
    )
    body = {"height": 170, "layer": bars(values, x, y, colour, "told")}
    return chart("Loading", [told], body)


def memory() -> Spec:
    """Growth of memory with the number of calibration images, at two bounds."""
    found = record("speed")["measured"]
    values = [
        {
            "bound": f"max_live_bytes {row['max_live_mib']:,} MiB",
            "images": row["calibration_images"],
            "MB": row["rss_growth_mb"],
            "passes": row["float_passes_cpu"],
        }
        for row in found
    ]
    names = list(dict.fromkeys(row["bound"] for row in values))
    counts = sorted({row["images"] for row in values})
    x = axis("images", "calibration images", log=True, values=counts)
    panels = []
    for field, title in (("MB", "growth of memory, MB"), ("passes", "time, in float passes")):
        y = axis(field, title, domain=(0, 1.1 * max(row[field] for row in values)))
        panels.append(
            {
                "width": 260,
                "height": 220,
                "data": {"values": values},
                "mark": {"type": "line", "point": {"size": 40}},
                "encoding": {"x": x, "y": y, "color": coloured("bound", names, "bottom")},
            }
        )
    spec = chart("GPFQ on ResNet-20: memory and time", [], {"hconcat": panels, "spacing": 30})
    return {key: value for key, value in spec.items() if key not in ("width", "height")}


def step_cost() -> Spec:
    """A training step to a plain one."""
    values = [
        {
            "step": row["kind"],
            "dtype": row["dtype"],
            "ratio": row["median_ratio"],
            "kind": "Brevitas" if "Brevitas" in row["kind"] else "fewbits",
            "told": f"{row['median_ratio']:.2f}",
        }
        for row in record("step_cost")["rows"]
        if row["dtype"] == "float32"
    ]
    x = axis("ratio", "time of a training step over that of a plain one", domain=(0, 2.8))
    y = axis("step", None, "nominal")
    y["sort"] = [row["step"] for row in values]
    colour = coloured("kind", ["fewbits", "Brevitas"], "bottom", (BLUE, ORANGE))
    body = {"width": 420, "height": 260, "layer": bars(values, x, y, colour, "told")}
    return chart("What training costs: ResNet-20, float32, one thread", [], body)


def onnx_time() -> Spec:
    """Time of ONNX exports in onnxruntime over that of float32."""
    found = record("onnx_w8a8")
    values = []
    for row in found["summary"]:
        for batch, times in found["latency"].items():
            ratio = times[row["case"]]["median_ms"] / times["float32"]["median_ms"]
            case = f"{row['case']} ({row['onnxruntime_accuracy']:.2f} %)"
            values.append({"case": case, "batch": f"batch {batch}", "ratio": ratio})
    x = axis("ratio", "time over that of float32", domain=(0, 2.2))
    y = axis("case", None, "nominal", grid=True)
    order = {row["case"]: 0.0 for row in values}
    for row in values:
        order[row["case"]] += row["ratio"]
    y["sort"] = sorted(order, key=lambda case: order[case])
    colour = coloured("batch", list(dict.fromkeys(row["batch"] for row in values)), "bottom")
    data = {"values": values}
    point = {"type": "point", "filled": True, "size": 80, "opacity": 1}
    line = {"type": "rule", "color": GREY, "strokeDash": [5, 4]}
    layer = [
        {"data": {"values": [{"one": 1}]}, "mark": line, "encoding": {"x": {**x, "field": "one"}}},
        {"data": data, "mark": point, "encoding": {"x": x, "y": y, "color": colour}},
    ]
    told = f"onnxruntime {found['onnxruntime']}, one thread; top-1 in brackets."
    return chart("ONNX exports of ResNet-20", [told], {"width": 420, "height": 240, "layer": layer})
