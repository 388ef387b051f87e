"""Pages whose tables come from the code and from records: README, support, robustness."""

from __future__ import annotations

from typing import Any

from fewbits.coding import CODECS
from fewbits.engine.layers.views import KINDS
from fewbits.exporters import EXPORTERS

from .records import ROOT, fill, from_old_coder, note, printed, record

__all__ = ["readme", "robustness", "support"]

_RESULTS = "<!-- results: written by docs/build.py -->\n"
_FUZZED = {
    "fuzz": _RESULTS,
    "fuzz_cost": "<!-- inputs that cost most: by docs/build.py -->\n",
    "fuzz_coverage": "<!-- guided by coverage: by docs/build.py -->\n",
    "writing": "<!-- files that are written: by docs/build.py -->\n",
}


def support() -> str:
    """The support matrix: layer kinds, codecs and exporters."""
    kinds = "\n".join(f"| `{name}` | {kind.summary} |" for name, kind in KINDS.items())
    ordered = sorted(CODECS.values(), key=lambda codec: codec.number)
    codecs = "\n".join(f"- `{codec.name}`: {codec.summary}" for codec in ordered)
    targets = "\n".join(_exporter(name, kind) for name, kind in EXPORTERS.items())
    return (
        "# Support\n\n## Layer kinds\n\n"
        'A weight "falls back" to rounding with least squared error where a method needs inputs\n'
        "that cannot be seen, and where a layer does not return them times its weight (subclasses\n"
        "with a forward of their own are compared once); the plan says so for each.\n\n"
        f"| kind | modules |\n|---|---|\n{kinds}\n\n## Codecs\n\n{codecs}\n\n"
        f"## Exporters\n\n| name | writes | read by | extra |\n|---|---|---|---|\n{targets}\n"
    )


def _exporter(name: str, kind: Any) -> str:
    extra = f"`{kind.extra}`" if kind.extra else ""
    what = f"`{kind.suffix}`: {kind.summary}" if kind.suffix else kind.summary
    return f"| `{name}` | {what} | {kind.runs} | {extra} |"


def readme() -> str:
    """README.md with its tables of results, from the records of ResNet-20."""
    found = record("resnet20_cifar10")
    rows = {(row["method"], row["bits"]): row for row in found["summary"]}
    widths = sorted({bits for _, bits in rows}, reverse=True)
    lines = [
        "| | " + " | ".join(f"{b} bits" for b in widths) + " |",
        "|---" * (1 + len(widths)) + "|",
    ]
    for name in dict.fromkeys(name for name, _ in rows):
        cells = [rows[name, b] for b in widths]
        told = [f"{c['accuracy_mean']:.2f} %, {c['file_bytes_mean']:,.0f} B" for c in cells]
        lines.append(f"| {name} | " + " | ".join(told) + " |")
    accuracy = found["float_accuracy"]["test"]
    table = (
        f"ResNet-20 on CIFAR-10, all 20 layers, {accuracy:.2f} % in float32: top-1 on the 10,000\n"
        "test images and bytes of the whole file, mean of three calibration seeds (1,024 training\n"
        "images each, no labels). The recipe `smallest` was given a size and found the rest:\n\n"
        + _sizes()
        + "\n\nMethods with fixed bit widths (2 bits are ternary):\n\n"
        + "\n".join(lines)
        + note(found)
        + _changed(found)
        + "\n\nMore, with time and memory: [results](docs/reference/results.md).\n"
    )
    return fill((ROOT / "README.md").read_text(encoding="utf-8"), {_RESULTS: table})


def _changed(found: Any) -> str:
    """Say that methods are not those of the record any more, until it is made again."""
    told = "\nGPFQ, GPTQ and Qronos have changed since ([how](docs/reference/papers.md))."
    return told if from_old_coder(found) else ""


def _sizes() -> str:
    """What `smallest` gives at the sizes of the record of budgets, on ResNet-20."""
    budgets = record("budgets")
    rows: list[Any] = [row for row in budgets["summary"] if row["network"] == "resnet20"]
    found = [row for row in rows if row["budget"][0] == "bytes"]
    cells = [f"{r['accuracy_mean']:.2f} %, {r['file_bytes_mean']:,.0f} B" for r in found]
    head = [f"{row['budget'][1]:,} B" for row in found]
    lines = [["asked for", *head], ["---"] * (1 + len(found)), ["smallest", *cells]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + note(budgets)


def robustness() -> str:
    """docs/robustness.md with the figures of the fuzzer, and of the files that are written."""
    text = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    return fill(text, {begin: printed(name) for name, begin in _FUZZED.items()})
