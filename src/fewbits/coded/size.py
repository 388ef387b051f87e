"""The itemised size of a file: rows that sum exactly to its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from .coverage import Coverage
from .display import html_table
from .tensors import WEIGHT_DTYPES

__all__ = ["SizeReport", "SizeRow"]


@dataclass(frozen=True)
class SizeRow:
    """One item of a file.

    Attributes:
        name: tensor name; shared codebooks and the file's own parts have names in parentheses.
        kind: grid, codebook, transform, raw, shared or file.
        shape: shape of the tensor; empty for other parts.
        codecs: names of the codecs of its streams, joined by "+".
        elements: number of values it stands for (0 for other parts).
        float_bytes: bytes of the same tensor in the network, in its own dtype.
        payload: bytes of coded symbols (or raw data).
        side: bytes of side information (steps, offsets, scales, codebooks).
        dtype: dtype of the tensor; empty for other parts.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    codecs: str
    elements: int
    float_bytes: int
    payload: int
    side: int
    dtype: str = "float32"

    @property
    def bytes(self) -> int:
        """Payload and side information together."""
        return self.payload + self.side

    @property
    def is_tensor(self) -> bool:
        """Whether the row is a tensor's rather than a shared or file part's."""
        return self.kind not in ("shared", "file")

    @property
    def bits_per_element(self) -> float:
        """All bits of this row per value; 0 if it has no values."""
        return 8 * self.bytes / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class SizeReport:
    """All rows of one file. ``file_bytes`` is their sum and the file's length on disk.

    ``reasons``: tensor name to why it is left in float, where known.
    """

    rows: tuple[SizeRow, ...]
    reasons: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def file_bytes(self) -> int:
        """Bytes on disk, everything counted."""
        return sum(row.bytes for row in self.rows)

    @property
    def float_bytes(self) -> int:
        """Bytes of the network's parameters and buffers, each in its own dtype."""
        return sum(row.float_bytes for row in self.rows)

    @property
    def weights(self) -> int:
        """Number of quantized weights (of all values if nothing is quantized)."""
        coded = sum(row.elements for row in self.rows if row.kind not in ("raw", "shared", "file"))
        return coded or sum(row.elements for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """All bits of the file per quantized weight."""
        return 8 * self.file_bytes / max(1, self.weights)

    @property
    def rate(self) -> str:
        """``bits_per_weight`` as text; says "quantized weight" if few weights are."""
        return f"{self.bits_per_weight:.3f} bits per {'quantized ' * self.coverage.low}weight"

    @property
    def compression_ratio(self) -> float:
        """Bytes of the network's tensors, each in its own dtype, divided by the file's bytes."""
        return self.float_bytes / max(1, self.file_bytes)

    @property
    def comparison(self) -> str:
        """``compression_ratio`` as text, with what the file is compared to."""
        dtypes = {row.dtype for row in self.rows if row.is_tensor and row.dtype in WEIGHT_DTYPES}
        whole = "the network's own tensors"
        if len(dtypes) == 1:
            (dtype,) = dtypes
            whole = dtype if dtype == "float32" else f"in {dtype}"
        return f"{self.compression_ratio:.1f}x smaller than {whole}"

    @property
    def coverage(self) -> Coverage:
        """How much of the network is quantized, and the largest tensor that is not."""
        tensors = [row for row in self.rows if row.kind not in ("shared", "file")]
        sizes = {row.name: row.elements for row in tensors if row.dtype in WEIGHT_DTYPES}
        coded = {row.name for row in tensors if row.kind != "raw"}
        plain = {row.name: "a vector" for row in tensors if len(row.shape) < 2}
        return Coverage.of(sizes, coded, {**plain, **self.reasons})

    @property
    def summary(self) -> str:
        """The totals in one line."""
        return f"{self.file_bytes:,} bytes, {self.rate}, {self.comparison}; {self.coverage}"

    def to_dict(self) -> dict[str, object]:
        """Return the totals and the rows as JSON-ready values."""
        return {
            "file_bytes": self.file_bytes,
            "float_bytes": self.float_bytes,
            "weights": self.weights,
            "bits_per_weight": self.bits_per_weight,
            "compression_ratio": self.compression_ratio,
            "quantized": self.coverage.to_dict(),
            "rows": [asdict(row) | {"bytes": row.bytes} for row in self.rows],
        }

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows] + [6])
        title = f"{'tensor':{width}}  {'kind':9} {'values':>10} {'bytes':>9}"
        lines = [f"{title} {'side':>7} {'bits':>6}"]
        for row in self.rows:
            bits = f"{row.bits_per_element:6.2f}" if row.elements else "     -"
            lines.append(
                f"{row.name:{width}}  {row.kind:9} {row.elements:>10,} {row.bytes:>9,}"
                f" {row.side:>7,} {bits}"
            )
        return "\n".join([*lines, self.summary])

    def __repr__(self) -> str:
        return f"<SizeReport of {len(self.rows)} rows: {self.summary}>"

    def _repr_html_(self) -> str:
        names = ("tensor", "kind", "shape", "codec", "values", "bytes", "side", "bits")
        rows = (
            (
                row.name,
                row.kind,
                "x".join(map(str, row.shape)),
                row.codecs,
                f"{row.elements:,}" if row.elements else "",
                f"{row.bytes:,}",
                f"{row.side:,}",
                f"{row.bits_per_element:.2f}" if row.elements else "",
            )
            for row in self.rows
        )
        return html_table(names, rows, footer=self.summary, numbers=(4, 5, 6, 7))
