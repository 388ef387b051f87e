"""What an exporter is: a frozen value with options and one verb, filed under a name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from ..coded import Contents
from ..errors import require
from ..registry import Registry

__all__ = ["EXPORTERS", "NEEDS", "Checked", "Checks", "Exported", "Exporter"]

NEEDS = ("nothing", "model", "inputs")


@dataclass(frozen=True)
class Checked:
    """How an exported file does in its runtime, with that runtime's default options.

    Attributes:
        samples: that were compared.
        relative_error: of all outputs against those of the compressed network in PyTorch: the norm
            of the difference over the norm.
        top1_agreement: percent of the largest entries that are at the same place, where outputs
            look like logits: two axes, or under that name; None elsewhere.
        batch: samples in a call that was timed.
        milliseconds: of a call: the median.
        float_milliseconds: of a call of the float32 export of the same network, in turns with it.
        float_bytes: of that export.
        runtime: with its version.
    """

    samples: int
    relative_error: float
    top1_agreement: float | None
    batch: int
    milliseconds: float
    float_milliseconds: float
    float_bytes: int
    runtime: str

    @property
    def time_ratio(self) -> float:
        """The time over that of float32."""
        return self.milliseconds / self.float_milliseconds

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "time_ratio": self.time_ratio}

    def __str__(self) -> str:
        top1 = self.top1_agreement
        same = "" if top1 is None else f", top-1 agrees for {top1:.4g}%"
        return (
            f"relative error {self.relative_error:.2g}{same} ({self.samples} samples); "
            f"{self.milliseconds:.3g} ms for a batch of {self.batch}, {self.time_ratio:.2f} of the "
            f"float32 export's, which has {self.float_bytes:,} bytes; {self.runtime}"
        )


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote.

    Attributes:
        path: the file, or the folder.
        bytes: its length; of a folder, that of all its files.
        weights: weight name to the bits of its integers, for those that are stored as integers.
        inputs: site to bits, of quantized inputs.
        notes: what differs from the compressed network, and what a runtime makes of it.
        check: how it does in its runtime, if that was asked for.
    """

    path: Path
    bytes: int
    weights: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    check: Checked | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        rest = {entry.name: getattr(self, entry.name) for entry in fields(self)[1:]}
        rest["check"] = None if self.check is None else self.check.to_dict()
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in rest.items()}
        return {"file": str(self.path), **plain}


@runtime_checkable
class Exporter(Protocol):
    """Writes compressed networks for one runtime: a frozen, keyword-only dataclass of its options.

    One whose files can be run here is a :class:`Checks` too.

    Attributes:
        name: under which it is registered in ``EXPORTERS``.
        summary: one line on what it writes.
        suffix: of its files, such as ".onnx"; empty for a folder.
        extra: of fewbits that brings what it imports; empty for none.
        runs: what runs or reads its files.
        needs: "nothing" but the compressed network, its "model", or "inputs" too, to trace it with.
        keeps_codes: whether integers stay integers; False if all weights are written as values.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str]
    runs: ClassVar[str]
    needs: ClassVar[str]
    keeps_codes: ClassVar[bool]

    def export(
        self, contents: Contents, path: Path, model: nn.Module | None, inputs: tuple[Tensor, ...]
    ) -> Exported:
        """Write ``contents`` to ``path``, and change neither them nor the model.

        Args:
            contents: of the compressed network.
            path: the file to write, which ends in ``suffix``; without one, the folder.
            model: a network of its architecture; None only if the exporter does not need it.
            inputs: of the network; empty only if the exporter does not need them.
        """
        ...


@runtime_checkable
class Checks(Protocol):
    """An exporter that runs what it wrote in its runtime."""

    def check(
        self, contents: Contents, path: Path, model: nn.Module | None, inputs: tuple[Tensor, ...]
    ) -> Checked:
        """Return how the file at ``path`` does; the arguments are those of its ``export``."""
        ...


def _check_needs(name: str, kind: type[Exporter]) -> None:
    known = ", ".join(map(repr, NEEDS))
    needs = getattr(kind, "needs", None)
    require(needs in NEEDS, f"needs of the exporter {name!r}", f"one of {known}", needs)


EXPORTERS: Registry[type[Exporter]] = Registry("exporter", "fewbits.exporters", _check_needs)
