"""What an exporter is: a frozen value with options and one verb, filed under a name."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from ..coded import Contents
from ..errors import require
from ..registry import Registry

__all__ = ["EXPORTERS", "NEEDS", "Exported", "Exporter"]

NEEDS = ("nothing", "model", "inputs")


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote.

    Attributes:
        path: the file, or the folder.
        bytes: its length; of a folder, that of all its files.
        weights: weight name to the bits of its integers, for those that are stored as integers.
        inputs: site to bits, of quantized inputs.
        notes: what differs from the compressed network, and what a runtime makes of it.
    """

    path: Path
    bytes: int
    weights: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        rest = {entry.name: getattr(self, entry.name) for entry in fields(self)[1:]}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in rest.items()}
        return {"file": str(self.path), **plain}


@runtime_checkable
class Exporter(Protocol):
    """Writes compressed networks for one runtime: a frozen, keyword-only dataclass of its options.

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


def _check_needs(name: str, kind: type[Exporter]) -> None:
    known = ", ".join(map(repr, NEEDS))
    needs = getattr(kind, "needs", None)
    require(needs in NEEDS, f"needs of the exporter {name!r}", f"one of {known}", needs)


EXPORTERS: Registry[type[Exporter]] = Registry("exporter", "fewbits.exporters", _check_needs)
