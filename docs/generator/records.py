"""Benchmark records and what is to be said of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "BENCHMARKS",
    "OLD",
    "ROOT",
    "fill",
    "from_old_coder",
    "has_record",
    "note",
    "printed",
    "record",
]

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
OLD = "These files were written with the coder of format 1."
END = "<!-- end of results -->\n"

sys.path.insert(0, str(BENCHMARKS))

Record = dict[str, Any]


def record(name: str) -> Record:
    """Return the record ``benchmarks/results/NAME.json``."""
    path = BENCHMARKS / "results" / f"{name}.json"
    found: Record = json.loads(path.read_text(encoding="utf-8"))
    return found


def has_record(name: str) -> bool:
    """Return whether the record ``benchmarks/results/NAME.json`` has been made."""
    return (BENCHMARKS / "results" / f"{name}.json").is_file()


def from_old_coder(found: Record) -> bool:
    """Return whether the bytes of a record are those of format 1, which are not today's."""
    return "format" not in found["environment"]


def note(found: Record, before: str = "\n\n") -> str:
    """Return what is to be said of a table or picture whose bytes are not today's."""
    return before + OLD if from_old_coder(found) else ""


def printed(name: str) -> str:
    """Return where a record comes from and its tables, as ``benchmarks/summary.py`` prints them."""
    import summary  # noqa: PLC0415  (a script beside the benchmarks, found by the path above)

    found = record(name)
    return f"{summary._origin(found)}\n\n{summary.PRINTERS[name](found)}"


def fill(text: str, parts: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    """Return a page with what stands between a first line and the next end written anew."""
    for begin, body in dict(parts).items():
        head, rest = text.split(begin)
        text = f"{head}{begin}{body.strip()}\n{END}{rest.partition(END)[2]}"
    return text
