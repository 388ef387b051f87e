"""The measured lines of "Which method, when": accuracy at bytes, from the records."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import mean
from typing import Any, NamedTuple

from .rate_picture import SHOWN
from .records import OLD, ROOT, fill, from_old_coder, note, record

__all__ = ["which_method"]

Row = dict[str, Any]
_BEGIN = "<!-- measured: by docs/build.py -->\n"
_RATES = "<!-- accuracy by size: by docs/build.py -->\n"


class Choice(NamedTuple):
    """A line of the table: what is wanted, what to take, and the record of what it gives."""

    wanted: str
    take: str
    name: str
    measured: Callable[[Row], str]


def which_method() -> str:
    """docs/which_method.md with its measured lines."""
    text = (ROOT / "docs" / "which_method.md").read_text(encoding="utf-8")
    return fill(text, {_BEGIN: _choices(), _RATES: _rates()})


def _choices() -> str:
    lines = ["| you want | take | measured, ResNet-20 on CIFAR-10 | record |", "|---|---|---|---|"]
    marks = set()
    for wanted, take, name, measured in _TABLE:
        found = record(name)
        mark = "°" if from_old_coder(found) else ""
        marks.add(mark)
        link = f"[{name}](../benchmarks/results/{name}.json)"
        lines.append(f"| {wanted} | {take} | {measured(found)}{mark} | {link} |")
    accuracy = record("rate_accuracy")["float_accuracy"]["resnet20"]
    told = f"Float32: {accuracy:.2f} %. Accuracy is top-1 of the file, on the test images."
    old = f"\n\n° {OLD}" if "°" in marks else ""
    return "\n".join([*lines, "", told]) + old


def _rates() -> str:
    """Top-1 of methods without training at common sizes, between the sizes measured."""
    found = record("rate_accuracy")
    sizes = (30_000, 45_000, 60_000, 90_000)
    lines = [
        "| | " + " | ".join(f"{size // 1000} kB" for size in sizes) + " |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    rows = [row for row in found["summary"] if row["network"] == "resnet20"]
    for method, name in SHOWN.items():
        points = sorted(
            (row["file_bytes_mean"], row["accuracy_mean"])
            for row in rows
            if row["method"] == method
        )
        cells = [_between(points, size) for size in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    told = "Top-1 in percent, on straight lines between the sizes that were measured."
    return "\n".join([*lines, "", told]) + note(found)


def _between(points: list[tuple[float, float]], size: float) -> str:
    for (low, first), (high, second) in pairwise(points):
        if low <= size <= high:
            return f"{first + (second - first) * (size - low) / (high - low):.1f}"
    return ""


def _at(top: float, size: float, more: str = "") -> str:
    return f"{top:.2f} % in {size:,.0f} bytes{more}"


def _budget(found: Row) -> str:
    rows = [row for row in found["summary"] if row["network"] == "resnet20"]
    told = [
        _at(row["accuracy_mean"], row["file_bytes_mean"])
        for row in rows
        if row["budget"][0] == "bytes"
    ]
    return "; ".join(told[1:3])


def _drop(found: Row) -> str:
    (row,) = [row for row in found["summary"] if row["budget"][0] == "drop"]
    size = _at(row["accuracy_mean"], row["file_bytes_mean"])
    return f"asked for a drop of {row['budget'][1]:g} points: {size}"


def _hemp(found: Row) -> str:
    runs = [run for run in found["runs"] if run["method"] == "resnet20, smallest"]
    size = _at(mean(r["accuracy"]["test"] for r in runs), mean(r["file_bytes"] for r in runs))
    minutes = mean(r["cpu_seconds"] for r in runs) / 60
    epochs = runs[0]["settings"]["epochs"]
    trained = f"{epochs:.0f} epochs with a ResNet-32 as teacher"
    return f"{size}, after {trained} ({minutes:.0f} CPU minutes)"


def _fixed(*wanted: tuple[str, int]) -> Callable[[Row], str]:
    def told(found: Row) -> str:
        rows = {(row["method"], row["bits"]): row for row in found["summary"]}
        return "; ".join(
            f"{bits} bits: "
            + _at(rows[name, bits]["accuracy_mean"], rows[name, bits]["file_bytes_mean"])
            + f", {rows[name, bits]['cpu_seconds_mean']:.0f} CPU s"
            for name, bits in wanted
        )

    return told


def _onnx(found: Row) -> str:
    case = "w7a8 outputs"
    (row,) = [row for row in found["summary"] if row["case"] == case]
    ratios = [
        times[case]["median_ms"] / times["float32"]["median_ms"]
        for times in found["latency"].values()
    ]
    return (
        f"7-bit weights: {row['onnxruntime_accuracy']:.2f} % in onnxruntime, in "
        f"{min(ratios):.2f} to {max(ratios):.2f} times the time of float32; "
        f"{row['file_bytes']:,} bytes, {row['onnx_bytes']:,} as ONNX"
    )


def _lowbit(found: Row) -> str:
    rows = {(row["bits"], row["kind"]): row for row in found["summary"]}
    cells = []
    for bits, kind in ((4, "direct"), (2, "joint")):
        row = rows[bits, kind]
        size = _at(row["accuracy_mean"], row["file_bytes_mean"])
        cells.append(f"W{bits}A{bits}, {kind}: {size}")
    return "; ".join(cells)


def _pwfn(found: Row) -> str:
    (row,) = [row for row in found["summary"] if row["kind"] == "pwfn"]
    return _at(row["accuracy"], row["file_bytes"], f", {row['values']:.0f} values")


_TABLE = (
    Choice(
        "the smallest file of a given size, without training",
        "the recipe [`smallest`](methods/rdoq.md) with `target_bytes=`",
        "budgets",
        _budget,
    ),
    Choice(
        "the smallest file that keeps the accuracy, without training",
        "`smallest` with [`max_drop=`](budgets.md)",
        "budgets",
        _drop,
    ),
    Choice(
        "the smallest file, and you can train",
        "`smallest`, then [HEMP](methods/hemp.md)",
        "hemp_resnet",
        _hemp,
    ),
    Choice(
        "a fixed number of bits, in seconds",
        "[Qronos](methods/baselines.md)",
        "resnet20_cifar10",
        _fixed(("qronos", 4), ("qronos", 3), ("qronos", 2)),
    ),
    Choice(
        "a file without any data",
        "[nearest](methods/baselines.md), 4 bits or more",
        "resnet20_cifar10",
        _fixed(("nearest", 4), ("nearest", 3)),
    ),
    Choice(
        "faster inference on a CPU, without training",
        "GPFQ at 7 bits with `--activations 8 --outputs`, [exported to ONNX](export.md)",
        "onnx_w8a8",
        _onnx,
    ),
    Choice(
        "weights and activations of 2 to 4 bits, for integer hardware",
        "[LowBit](methods/lowbit.md), trained",
        "lowbit_resnet",
        _lowbit,
    ),
    Choice(
        "few distinct values in the whole network, sums of powers of two",
        "[PWFN](methods/pwfn.md), trained",
        "pwfn_resnet",
        _pwfn,
    ),
)
