"""Tables of the benchmarks that set fewbits beside other tools."""

from __future__ import annotations

from typing import Any

from tables import table

__all__ = ["imagenet", "language_model", "sentences"]

Row = dict[str, Any]


def _cells(row: Row, metrics: dict[str, str]) -> tuple[str, ...]:
    """Return what every table shows of a case, and its metrics, each with its format."""
    return (
        row["case"],
        f"{row['file_bytes']:,}",
        f"{row['bits_per_parameter']:.2f}",
        *(format(row[name], form) for name, form in metrics.items()),
        f"{row['compress_cpu_seconds']:.0f}" if "compress_cpu_seconds" in row else "",
    )


def _table(record: Row, metrics: dict[str, str], names: tuple[str, ...]) -> str:
    rows = sorted(record["measured"], key=lambda row: -row["file_bytes"])
    head = ("case", "file bytes", "bits a parameter, all in", *names, "CPU s")
    text = table(head, [_cells(row, metrics) for row in rows])
    left = [*record.get("absent", {}), *record.get("failed", {})]
    return text + (f"\n\nNot run: {', '.join(left)}." if left else "")


def language_model(record: Row) -> str:
    """Bytes and perplexity of SmolLM2; then what llama.cpp's mixes would take."""
    text = _table(record, {"perplexity": ".2f"}, ("perplexity",))
    sizes = record.get("sizes_only", {})
    if not sizes or "absent" in sizes:
        return text
    told = ", ".join(f"{mix} {size['bits_per_parameter']:.2f}" for mix, size in sizes.items())
    return f"{text}\n\nBits a parameter of mixes that llama.cpp would write (sizes only): {told}."


def sentences(record: Row) -> str:
    """Bytes, cosine and rank correlation of all-MiniLM-L6-v2."""
    text = _table(record, {"cosine": ".4f", "spearman": ".4f"}, ("cosine", "Spearman"))
    told = ", ".join(
        f"{name} at {size / 1e6:.1f} MB" for name, size in record["bytes_at"].items() if size
    )
    return f"{text}\n\nBetween cases of slopes: {told}." if told else text


def imagenet(record: Row) -> str:
    """Bytes, accuracy and agreement of EfficientNet-Lite0."""
    names = ("accuracy %", "as the float network %")
    return _table(record, {"accuracy": ".1f", "agreement": ".1f"}, names)
