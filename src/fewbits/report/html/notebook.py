"""What notebooks show of results: the charts and tables of their reports, without the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .page import html_of
from .reports import sensitivity_report, sweep_report
from .sections import trace_section

__all__ = ["sensitivity_html", "sweep_html", "trace_html"]


def trace_html(trace: Mapping[str, Any]) -> str:
    """Return the curve and the trials of ``Trace.to_dict()``."""
    return html_of(trace_section(trace, "the float network").parts)


def sweep_html(sweep: Mapping[str, Any]) -> str:
    """Return the curve and the points of ``Sweep.to_dict()``."""
    return html_of(sweep_report(sweep).section("Accuracy over bytes").parts)


def sensitivity_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the divergences and the rows of ``LayerHarm.to_dict()``."""
    return html_of(sensitivity_report(rows).section("Harm of every weight").parts)
