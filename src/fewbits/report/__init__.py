"""Tables and plots for people: sizes, plans, searches and comparisons."""

from .html.notebook import sensitivity_html, sweep_html, trace_html
from .html.page import Page, Section, check_report, facts_table
from .html.reports import (
    coded_report,
    comparison_report,
    plan_report,
    sensitivity_report,
    sweep_report,
)
from .plot import PLOTS, check_plot, rate_chart, render
from .rates import EntropyRow, entropy_table, histogram_table
from .search import failures, sensitivity_table, sweep_table, trace_table
from .table import Column, Table, human_bytes, printable, show
from .values import energy_table, noise_table, values_table
from .views import (
    Comparison,
    comparison_table,
    methods_table,
    plan_table,
    settings_table,
    size_table,
)

__all__ = [
    "PLOTS",
    "Column",
    "Comparison",
    "EntropyRow",
    "Page",
    "Section",
    "Table",
    "check_plot",
    "check_report",
    "coded_report",
    "comparison_report",
    "comparison_table",
    "energy_table",
    "entropy_table",
    "facts_table",
    "failures",
    "histogram_table",
    "human_bytes",
    "methods_table",
    "noise_table",
    "plan_report",
    "plan_table",
    "printable",
    "rate_chart",
    "render",
    "sensitivity_html",
    "sensitivity_report",
    "sensitivity_table",
    "settings_table",
    "show",
    "size_table",
    "sweep_html",
    "sweep_report",
    "sweep_table",
    "trace_html",
    "trace_table",
    "values_table",
]
