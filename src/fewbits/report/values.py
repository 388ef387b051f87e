"""Tables of a network's distinct values, and of its cost on shift-and-add hardware."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..coded import Energy, NetworkValues
from .table import Column, Table

__all__ = ["energy_table", "noise_table", "values_table"]


def noise_table(rows: Iterable[Any]) -> Table:
    """Return one line per ``NoisyEvaluation``: single draws, and their mean probabilities."""
    names = ["weight noise", "draws", "accuracy", "+-", "worst", "best"]
    names += ["ensemble", "loss", "ECE"]
    lines = []
    for row in rows:
        shown = [f"{row.accuracy:.2%}", f"{row.deviation:.2%}", f"{row.lowest:.2%}"]
        shown += [f"{row.highest:.2%}", f"{row.ensemble_accuracy:.2%}"]
        shown += [f"{row.ensemble_loss:.4f}", f"{row.ensemble_ece:.4f}"]
        lines.append((f"{row.noise:g}", f"{row.draws}", *shown))
    columns = tuple(Column(name, True) for name in names)
    return Table(columns, tuple(lines), footer="ensemble: mean probabilities of all draws")


def values_table(values: NetworkValues, title: str = "") -> Table:
    """Return a network's distinct values, their entropies and their sums of powers of two."""
    rows = [
        ("weights", f"{values.weights:,}"),
        ("distinct values", f"{values.values:,}"),
        ("distinct nonzero values", f"{values.nonzero_values:,}"),
        ("entropy, bits per weight", f"{values.entropy:.4f}"),
        ("entropy of nonzero weights, bits", f"{values.nonzero_entropy:.4f}"),
        ("zeros", f"{values.zeros:.2%}"),
    ]
    rows += [
        (f"sums of {terms} powers of two" if terms != 1 else "powers of two", f"{share:.2%}")
        for terms, share in enumerate(values.terms)
        if terms and share
    ]
    return Table((Column("of the network"), Column("", True)), tuple(rows), title)


def energy_table(energy: Energy, title: str = "", *, positions: bool = True) -> Table:
    """Return one line per layer: its float products, and the operations that replace them."""
    names = ["tensor", "weights", "products", "nonzero", "shift-adds", "multipliers", "shared"]
    names += ["scalings", "kbit stored"]
    rows: list[tuple[str, ...]] = [
        (
            layer.name,
            f"{layer.weights:,}",
            f"{layer.macs:,}",
            f"{layer.adds:,}",
            f"{layer.shift_adds:,}",
            f"{layer.multipliers:,}",
            f"{layer.shared_products:,}",
            f"{layer.scalings:,}",
            f"{layer.stored_bits / 1000:,.1f}",
        )
        for layer in energy.layers
    ]
    summed = ("weights", "macs", "adds", "shift_adds", "multipliers", "shared_products", "scalings")
    totals = (*(f"{energy.total(name):,}" for name in summed),)
    rows.append(("total", *totals, f"{energy.total('stored_bits') / 1000:,.1f}"))
    columns = tuple(Column(name, place > 0) for place, name in enumerate(names))
    ratio = energy.ratios()
    per = "one sample" if positions else "one use of each weight; name --data for one sample"
    footer = (
        f"for {per}; relative to float32: weight traffic {ratio['weight_traffic']:.4f}, remaining "
        f"products {ratio['multiplications']:.4f}, shift-adds per product {ratio['adds']:.3f}, "
        f"energy {ratio['total_dram_integer']:.4f} (DRAM, integers) to "
        f"{ratio['total_dram_float']:.4f} (DRAM, float adds); operation counts at 45 nm: shifts "
        "are free with integer activations only"
    )
    return Table(columns, tuple(rows), title, footer)
