"""Tables of the values of a network, and of what they would cost on shifts and adds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..coded import Energy, NetworkValues
from .table import Column, Table

__all__ = ["energy_table", "noise_table", "values_table"]


def noise_table(rows: Iterable[Any]) -> Table:
    """Return one line per ``NoisyEvaluation``: draws one by one, and their mean probabilities."""
    names = ["weight noise", "draws", "accuracy", "+-", "worst", "best"]
    names += ["together", "loss", "ECE"]
    lines = []
    for row in rows:
        shown = [f"{row.accuracy:.2%}", f"{row.deviation:.2%}", f"{row.lowest:.2%}"]
        shown += [f"{row.highest:.2%}", f"{row.ensemble_accuracy:.2%}"]
        shown += [f"{row.ensemble_loss:.4f}", f"{row.ensemble_ece:.4f}"]
        lines.append((f"{row.noise:g}", f"{row.draws}", *shown))
    columns = tuple(Column(name, True) for name in names)
    return Table(columns, tuple(lines), footer="together: the mean probabilities of all draws")


def values_table(values: NetworkValues, title: str = "") -> Table:
    """Return the distinct values of a network, their entropies, and the orders of their sums."""
    rows = [
        ("weights", f"{values.weights:,}"),
        ("distinct values", f"{values.values:,}"),
        ("distinct values, zero left out", f"{values.nonzero_values:,}"),
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
    """Return one line per layer: products of the float layer, and what takes their place."""
    names = ["tensor", "weights", "products", "not by 0", "shift-adds", "multipliers", "shared"]
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
        f"for {per}; to float32: weight traffic {ratio['weight_traffic']:.4f}, products left "
        f"{ratio['multiplications']:.4f}, shift-adds per product {ratio['adds']:.3f}, energy "
        f"{ratio['total_dram_integer']:.4f} (DRAM, integers) to {ratio['total_dram_float']:.4f} "
        "(DRAM, float adds); a count at 45 nm: shifts are free with integer activations only"
    )
    return Table(columns, tuple(rows), title, footer)
