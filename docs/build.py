"""Write what the documentation takes from the code and from benchmark records. Run: make docs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from fewbits import METHODS, TRAINED
from fewbits.coding import CODECS
from fewbits.engine.layers.views import KINDS
from fewbits.exporters import EXPORTERS

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "results"
NOTE = "<!-- Written by docs/build.py; `make docs` writes it again. -->\n\n"
COST = "<!-- inputs that cost most: by docs/build.py -->\n"
COVERAGE = "<!-- guided by coverage: by docs/build.py -->\n"
WRITING = "<!-- files that are written: by docs/build.py -->\n"
BEGIN, END = "<!-- results: written by docs/build.py -->\n", "<!-- end of results -->\n"


def methods() -> str:
    """One section per registered method: what it needs, and its settings."""
    parts = ["# Methods\n"]
    for name, method in METHODS.items():
        parts.append(f"\n## {name}\n\n{method.summary}.\n\n- Paper: {method.paper}")
        parts.append(f"- Needs: {method.needs}\n\n| setting | default |\n|---|---|")
        parts += [f"| `{field.name}` | `{field.default!r}` |" for field in fields(method)]
    for name, trained in TRAINED.items():
        parts.append(f"\n## {name}\n\n{trained.summary}.\n\n- Paper: {trained.paper}")
        parts.append("- Needs: training, by `fewbits.prepare`\n\n| setting | default |\n|---|---|")
        parts += [f"| `{field.name}` | `{field.default!r}` |" for field in fields(trained)]
    return NOTE + "\n".join(parts) + "\n"


def support() -> str:
    """The support matrix: layer kinds, codecs and exporters."""
    kinds = "\n".join(f"| `{name}` | {kind.summary} |" for name, kind in KINDS.items())
    ordered = sorted(CODECS.values(), key=lambda codec: codec.number)
    codecs = "\n".join(f"- `{codec.name}`: {codec.summary}" for codec in ordered)
    targets = "\n".join(_target(name, kind) for name, kind in EXPORTERS.items())
    return (
        f"{NOTE}# Support\n\n## Layer kinds\n\n"
        'A weight "falls back" to rounding with least squared error where a method needs inputs\n'
        "that cannot be seen, and where a layer does not return them times its weight (subclasses\n"
        "with a forward of their own are compared once); the plan says so for each.\n\n"
        f"| kind | modules |\n|---|---|\n{kinds}\n\n## Codecs\n\n{codecs}\n\n"
        f"## Exporters\n\n| name | writes | read by | extra |\n|---|---|---|---|\n{targets}\n"
    )


def _target(name: str, kind: Any) -> str:
    extra = f"`{kind.extra}`" if kind.extra else ""
    return f"| `{name}` | `{kind.suffix}`: {kind.summary} | {kind.runs} | {extra} |"


def results() -> str:
    """Every table of benchmarks/summary.py."""
    command = [sys.executable, str(ROOT / "benchmarks" / "summary.py")]
    tables = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    origin = "How each was made: [benchmarks](../../benchmarks/README.md)."
    return f"{NOTE}# Results\n\n{origin}\n\n{tables}"


def _sizes() -> str:
    """What `smallest` gives at the sizes of the record of budgets, on ResNet-20."""
    record = json.loads((RECORDS / "budgets.json").read_text(encoding="utf-8"))
    rows = [row for row in record["summary"] if row["network"] == "resnet20"]
    found = [row for row in rows if row["budget"][0] == "bytes"]
    cells = [f"{r['accuracy_mean']:.2f} %, {r['file_bytes_mean']:,.0f} B" for r in found]
    head = [f"{row['budget'][1]:,} B" for row in found]
    lines = [["asked for", *head], ["---"] * (1 + len(found)), ["smallest", *cells]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + _old(record)


def _old(record: dict[str, Any]) -> str:
    """Return what is to be said of a table whose bytes are not today's."""
    if "format" in record["environment"]:
        return ""
    return "\n\nThese files were written with the coder of format 1."


def readme() -> str:
    """README.md with its tables of results, from the records of ResNet-20."""
    record = json.loads((RECORDS / "resnet20_cifar10.json").read_text(encoding="utf-8"))
    rows = {(row["method"], row["bits"]): row for row in record["summary"]}
    widths = sorted({bits for _, bits in rows}, reverse=True)
    lines = [
        "| | " + " | ".join(f"{b} bits" for b in widths) + " |",
        "|---" * (1 + len(widths)) + "|",
    ]
    for name in dict.fromkeys(name for name, _ in rows):
        cells = [rows[name, b] for b in widths]
        told = [f"{c['accuracy_mean']:.2f} %, {c['file_bytes_mean']:,.0f} B" for c in cells]
        lines.append(f"| {name} | " + " | ".join(told) + " |")
    accuracy = record["float_accuracy"]["test"]
    table = (
        f"ResNet-20 on CIFAR-10, all 20 layers, {accuracy:.2f} % in float32: top-1 on the 10,000\n"
        "test images and bytes of the whole file, mean of three calibration seeds (1,024 training\n"
        "images each, no labels). The recipe `smallest` was given a size and found the rest:\n\n"
        + _sizes()
        + "\n\nMethods with fixed bit widths (2 bits are ternary):\n\n"
        + "\n".join(lines)
        + _old(record)
        + "\n\nMore, with time and memory: [results](docs/reference/results.md).\n"
    )
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    return head + BEGIN + table + END + rest.split(END)[1]


def robustness() -> str:
    """docs/robustness.md with the figures of the fuzzer, and of the files that are written."""
    text = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    places = (
        ("fuzz", BEGIN),
        ("fuzz_cost", COST),
        ("fuzz_coverage", COVERAGE),
        ("writing", WRITING),
    )
    for name, begin in places:
        command = [sys.executable, str(ROOT / "benchmarks" / "summary.py"), name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        figures = told.partition("\n\n")[2].rstrip("\n")
        head, rest = text.split(begin)
        text = f"{head}{begin}{figures}\n{END}{rest.partition(END)[2]}"
    return text


def main() -> None:
    """Write the pages; with --check only compare, and exit with 1 where one is out of date."""
    reference = ROOT / "docs" / "reference"
    pages = {
        reference / "methods.md": methods(),
        reference / "support.md": support(),
        reference / "results.md": results(),
        ROOT / "docs" / "robustness.md": robustness(),
        ROOT / "README.md": readme(),
    }
    stale = [p for p, t in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != t]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"out of date: {', '.join(p.name for p in stale)}. Run: make docs")
        return
    reference.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")


if __name__ == "__main__":
    main()
