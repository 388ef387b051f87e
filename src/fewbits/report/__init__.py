"""What people read: tables of sizes, plans and comparisons."""

from .rates import EntropyRow, entropy_table, histogram_table
from .search import trace_table
from .table import Column, Table, human_bytes, printable, show
from .views import (
    Comparison,
    comparison_table,
    methods_table,
    plan_table,
    settings_table,
    size_table,
)

__all__ = [
    "Column",
    "Comparison",
    "EntropyRow",
    "Table",
    "comparison_table",
    "entropy_table",
    "histogram_table",
    "human_bytes",
    "methods_table",
    "plan_table",
    "printable",
    "settings_table",
    "show",
    "size_table",
    "trace_table",
]
