"""Tables of searches: what was tried, and where the harm lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import Column, Table

__all__ = ["trace_table"]


def trace_table(trace: Mapping[str, Any], title: str = "") -> Table:
    """Return one line per trial of ``Trace.to_dict()``; a star marks the chosen one."""
    names = ("", "slope", "bytes", "bits/weight", "score", "seconds")
    rows = tuple(
        (
            "*" if trial["chosen"] else "",
            f"{trial['slope']:.3e}",
            f"{trial['bytes']:,}",
            f"{trial['bits_per_weight']:.3f}",
            score_text(trial["score"]),
            f"{trial['seconds']:.1f}",
        )
        for trial in trace["trials"]
    )
    columns = tuple(Column(name, bool(name)) for name in names)
    ended = f"search: {trace['ended']}"
    if trace["reference"] is not None:
        ended += f"; float32 scores {score_text(trace['reference'])}"
    return Table(columns, rows, title, ended)


def score_text(score: float | None) -> str:
    """Return a score to four digits."""
    return "-" if score is None else f"{score:.4f}"
