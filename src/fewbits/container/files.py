"""Files on disk: atomic writing, bounded reading, and a look inside without decoding."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from ..coded import ActivationGrid, Contents, JSONValue, SizeReport
from ..errors import CorruptFileError
from .reader import decode, decode_activations, default_limit, guard, open_file
from .sizes import size_report

__all__ = ["FileInfo", "inspect", "measure", "read", "write"]

T = TypeVar("T")


@dataclass(frozen=True)
class FileInfo:
    """What a file says of itself, checked, with no weight decoded.

    Attributes:
        path: the file.
        version: (major, minor) of its format.
        report: where its bytes went.
        aliases: other names of tied tensors.
        activations: layer name to the grid of its quantized input.
        metadata: what the writer noted: recipe, source, reasons.
    """

    path: str
    version: tuple[int, int]
    report: SizeReport
    aliases: Mapping[str, str]
    activations: Mapping[str, ActivationGrid]
    metadata: Mapping[str, JSONValue]

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON-ready values."""
        return {
            "path": self.path,
            "version": list(self.version),
            "size": self.report.to_dict(),
            "aliases": dict(self.aliases),
            "activations": {name: asdict(grid) for name, grid in self.activations.items()},
            "metadata": dict(self.metadata),
        }


def write(data: bytes, path: str | os.PathLike[str]) -> None:
    """Write ``data`` to ``path``, wholly or not at all: a crash leaves the old file or the new.

    Links are followed. Raises OSError as the system gives it, and then leaves nothing behind.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str], *, max_decoded_bytes: int | None = None) -> Contents:
    """Return what the file at ``path`` holds; see :func:`decode`."""
    return _named(path, lambda data: decode(data, max_decoded_bytes=max_decoded_bytes))


def inspect(path: str | os.PathLike[str]) -> FileInfo:
    """Return what the file at ``path`` says of itself: header and checksums, no weight decoded."""

    def look(data: bytes) -> FileInfo:
        with guard("the file"):
            opened = open_file(data, default_limit(data))
            return FileInfo(
                path=os.fspath(path),
                version=opened.version,
                report=size_report(opened),
                aliases=opened.header.aliases,
                activations=decode_activations(opened),
                metadata=opened.header.metadata,
            )

    return _named(path, look)


def measure(data: bytes) -> SizeReport:
    """Return where the bytes of the file ``data`` went; the rows sum to ``len(data)``."""
    with guard("the file"):
        return size_report(open_file(data, default_limit(data)))


def _named(path: str | os.PathLike[str], use: Callable[[bytes], T]) -> T:
    data = Path(path).read_bytes()
    try:
        return use(data)
    except CorruptFileError as error:
        raise CorruptFileError(f"{os.fspath(path)}: {error}") from error
