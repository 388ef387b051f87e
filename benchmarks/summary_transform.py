"""Tables of ``transform_ablation.py`` that do not measure accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import mean
from typing import Any

import numpy as np

from tables import table

__all__ = [
    "transform_baselines",
    "transform_basis_bits",
    "transform_forms",
    "transform_metric",
    "transform_retraining",
    "transform_steps",
]

Row = dict[str, Any]


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _mean(rows: Iterable[Row], name: str) -> float:
    return mean(row[name] for row in rows)


def _at_bytes(rows: list[Row], name: str, size: float) -> float:
    """Return the value at a size, on straight lines between the logarithms."""
    points = sorted((np.log(row["file_bytes"]), np.log(row[name])) for row in rows)
    return float(np.exp(np.interp(np.log(size), *zip(*points, strict=True))))


def transform_forms(record: Row) -> str:
    """The paper's form: bytes and error of each basis at three slopes, and the prediction."""
    lines = [
        (
            form,
            f"{slope:g}",
            f"{_mean(rows, 'file_bytes'):,.0f}",
            f"{_mean(rows, 'bits_per_weight'):.2f}",
            f"{_mean(rows, 'drift'):.3g}",
            f"{mean(row['drift'] / row['foretold'] for row in rows):.2f}",
            f"{_mean(rows, 'transformed_layers'):.1f}",
            f"{max(row['layers_of_zeros'] for row in rows)}",
        )
        for (form, slope), rows in _grouped(
            record["measured"], lambda row: (row["form"], row["slope"])
        ).items()
    ]
    head = ("basis", "slope", "file bytes", "bits", "squared change of logits")
    return table((*head, "measured over predicted", "layers in a basis", "all-zero layers"), lines)


def transform_baselines(record: Row) -> str:
    """Variants at one budget, and other methods at their own sizes."""
    groups = _grouped(record["measured"], lambda row: (row["baseline"], str(row["settings"])))
    lines = []
    for (name, _), rows in groups.items():
        settings = rows[0]["settings"]
        width = [f"{settings[key]} {key}" for key in ("bits", "levels") if key in settings]
        lines.append(
            (
                ", ".join([name, *width]),
                f"{_mean(rows, 'file_bytes'):,.0f}",
                f"{_mean(rows, 'drift'):.3g}",
                f"{min(r['drift'] for r in rows):.3g} to {max(r['drift'] for r in rows):.3g}",
            )
        )
    return table(("variant", "file bytes", "squared change of logits", "range over seeds"), lines)


def transform_metric(record: Row) -> str:
    """Divergence on held-out training images at equal bytes, between measured sizes."""
    sizes = (60_000, 46_000, 38_000)
    lines = []
    for name, rows in _grouped(record["measured"], lambda row: row["metric"]).items():
        seeds = _grouped(rows, lambda row: row["seed"]).values()
        found = [mean(_at_bytes(seed, "divergence", size) for seed in seeds) for size in sizes]
        lines.append((name, *(f"{value:.4f}" for value in found)))
    return table(("metric", *(f"{size:,} bytes" for size in sizes)), lines)


def transform_retraining(record: Row) -> str:
    """Bytes and accuracy before and after training, by what is trained."""
    lines = []
    for row in record["summary"]:
        network, rate, basis, trained = row["method"].split(" | ")
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.2f}"
        size = f"{row['file_bytes']:,.0f}", f"{row['bits_per_weight']:.2f}"
        accuracy = f"{row['accuracy']:.2f}{spread}"
        lines.append((network, rate, basis, trained, *size, accuracy, f"{row['seeds']}"))
    floats = "; ".join(f"{name} {top1:.2f}" for name, top1 in record["float_accuracy"].items())
    head = ("network", "rate", "basis", "trained", "file bytes", "bits", "top-1 %", "seeds")
    return f"{table(head, lines)}\n\nIn float, top-1 %: {floats}."


def transform_basis_bits(record: Row) -> str:
    """Cost, bytes and accuracy by the depth of the basis."""
    groups = _grouped(record["measured"], lambda row: (row["network"], row["form"])).values()
    lines = []
    for rows in groups:
        fixed = next(row["cost"] for row in rows if row["basis_bits"] == 4)
        lines += [
            (
                row["network"],
                row["form"],
                "chosen" if row["basis_bits"] is None else f"{row['basis_bits']}",
                f"{row['cost'] / fixed:.3f}",
                f"{row['file_bytes']:,}",
                f"{row['accuracy']:.2f}",
            )
            for row in rows
        ]
    head = ("network", "form", "bits of a basis", "cost, relative to 4 bits", "file bytes")
    return table((*head, "top-1 %"), lines)


def transform_steps(record: Row) -> str:
    """Error with steps by weight error, and by predicted and measured output error."""
    rows = record["measured"]
    choices = ("weight error", "predicted output error", "measured output error")
    lines = [
        (
            f"no transform{suffix}",
            f"{_mean(rows, 'bits_per_weight'):.2f}",
            *(f"{_mean(rows, choice + suffix):.3g}" for choice in choices),
            f"{_mean(rows, 'bits saved' + suffix):.2f}",
        )
        for suffix in ("", ", bias corrected")
    ]
    head = ("steps minimize", "bits", *choices, "bits saved")
    return table(head, lines)
