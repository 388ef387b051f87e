"""The reports that verbs and results write: which sections they have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...coded import CodedTensor, Coverage, SizeReport
from ..plot import rate_points
from ..search import failures, score_text, sensitivity_table, sweep_table
from ..views import Comparison, comparison_table
from .page import Page, Section, facts_table, versions
from .sections import (
    SCORE,
    codes_section,
    curve_charts,
    history_section,
    plan_section,
    sensitivity_charts,
    size_section,
    trace_section,
)

__all__ = ["coded_report", "comparison_report", "plan_report", "sensitivity_report", "sweep_report"]


def coded_report(
    report: SizeReport,
    tensors: Mapping[str, CodedTensor],
    *,
    title: str,
    facts: Mapping[str, object],
    plan: Mapping[str, Any] | None = None,
    trace: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, float]] = (),
    notes: Sequence[str] = (),
    dtype: str = "float32",
    score: str = SCORE,
) -> Page:
    """Return the report of one compressed network.

    Args:
        report: its size.
        tensors: its coded tensors, which are made one by one.
        title: heading.
        facts: settings by name.
        plan: ``Plan.to_dict()``.
        trace: ``Trace.to_dict()`` of its search.
        history: metrics of the epochs of its training.
        notes: what happened on the way.
        dtype: of the network before compression.
        score: what its search scored.
    """
    sections = [Section("Settings", [facts_table({**facts, **_recipe_facts(plan)})])]
    sections.append(Section("Notes", [*notes]))
    if trace is not None:
        sections.append(trace_section(trace, dtype, score))
    sections += [history_section(history), size_section(report), codes_section(tensors, report)]
    sections.append(_reasons(report) if plan is None else plan_section(plan))
    return Page(title, (*sections, versions()))


def plan_report(plan: Mapping[str, Any]) -> Page:
    """Return the report of ``Plan.to_dict()``: what would be done."""
    settings = Section("Settings", [facts_table(_recipe_facts(plan))])
    return Page("A plan by fewbits", (settings, plan_section(plan), versions()))


def sweep_report(
    sweep: Mapping[str, Any], failed: Sequence[Mapping[str, Any]] = (), title: str = ""
) -> Page:
    """Return the report of ``Sweep.to_dict()``, and of the points that failed."""
    exact = sweep["float"]
    dtype = exact.get("dtype", "float32")
    told = f"{dtype}: {score_text(exact['score'])} in {exact['bytes']:,} bytes"
    reference = None if exact["score"] is None else (exact["score"], told)
    key = dict(sweep.get("key", {}))
    score = f"accuracy on the split {key['split']!r}" if "split" in key else SCORE
    charts = curve_charts(rate_points(sweep), score, reference)
    stored = [p["quantized"] for p in sweep["points"] if p.get("quantized")]
    covered = list(dict.fromkeys(str(Coverage.of_dict(values)) for values in stored))
    sections = [
        Section("Settings", [facts_table(key)]),
        Section("Accuracy over bytes", [*charts, sweep_table(sweep)]),
        Section("Points that failed", failures(failed)),
        Section("What is quantized", covered),
        versions(),
    ]
    return Page(title or "A sweep by fewbits", tuple(sections))


def sensitivity_report(
    rows: Sequence[Mapping[str, Any]],
    coverage: Coverage | None = None,
    *,
    facts: Mapping[str, object] | None = None,
    title: str = "",
) -> Page:
    """Return the report of the rows of ``LayerHarm.to_dict()``."""
    table = sensitivity_table(rows, coverage=coverage)
    sections = (
        Section("Settings", [facts_table(facts)] if facts else []),
        Section("Harm of every weight", [*sensitivity_charts(rows), table]),
        versions(),
    )
    return Page(title or "Sensitivity by fewbits", sections)


def comparison_report(
    rows: Iterable[Comparison], *, title: str, facts: Mapping[str, object], coverage: Coverage
) -> Page:
    """Return the report of several ways to store one network, the first of them in float32."""
    exact, *others = rows
    points = [
        {"method": row.method, "bytes": row.bytes, "score": 100 * row.accuracy} for row in others
    ]
    reference = (100 * exact.accuracy, f"float32: {exact.accuracy:.2%} in {exact.bytes:,} bytes")
    charts = curve_charts(points, "accuracy on the test split, %", reference)
    table = comparison_table((exact, *others), footer=str(coverage))
    sections = (
        Section("Settings", [facts_table(facts)]),
        Section("Accuracy over bytes", [*charts, table]),
        versions(),
    )
    return Page(title, sections)


def _recipe_facts(plan: Mapping[str, Any] | None) -> dict[str, object]:
    """Return the recipe as settings by name: one per rule, then what else it says."""
    if plan is None:
        return {}
    recipe = dict(plan["recipe"])
    facts: dict[str, object] = {}
    for rule in recipe.pop("rules", ()):
        settings = {k: v for k, v in rule.items() if k != "match"}
        facts[f"rule for {rule['match']!r}"] = _joined(settings)
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            facts[f"recipe: {name}"] = _joined(value)
        elif isinstance(value, (list, tuple)):
            facts[f"recipe: {name}"] = ", ".join(map(str, value))
        else:
            facts[f"recipe: {name}"] = value
    return facts


def _joined(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _reasons(report: SizeReport) -> Section:
    return Section("What is quantized", [str(report.coverage)])
