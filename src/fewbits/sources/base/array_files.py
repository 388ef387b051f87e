"""NumPy's files, read without unpickling anything and within the limits on decompression."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from numpy.lib.format import (
    MAGIC_PREFIX,
    read_array,
    read_array_header_1_0,
    read_array_header_2_0,
    read_magic,
)
from numpy.typing import NDArray

from ...errors import SourceError
from .bounded import check_archive

__all__ = ["data_file", "read_npy", "read_npz"]

_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): read_array_header_1_0,
    (2, 0): read_array_header_2_0,
}


def data_file(path: Path) -> Path:
    """Return the path of a file of data, checked to be one.

    Raises:
        SourceError: it is not there.
    """
    if not path.is_file():
        raise SourceError(f"data file {str(path)!r} does not exist (looked in {Path.cwd()}).")
    return path


def read_npz(path: Path, wanted: Collection[str]) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the arrays with these names, and a list of all names for messages.

    Raises:
        SourceError: no such file, or one that cannot be read without pickles.
    """
    data_file(path)
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX:
                raise SourceError(f"{path}: is a single array; expected a .npz with x and y.")
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path)
            entries = {e.filename.removesuffix(".npy"): e for e in archive.infolist()}
            arrays = {
                name: _entry(archive, entry) for name, entry in entries.items() if name in wanted
            }
            return arrays, ", ".join(sorted(entries)) or "none"
    except SourceError:
        raise
    except Exception as error:  # NumPy parses headers as Python, so damage can raise anything
        raise SourceError(f"{path}: cannot be read as .npz without pickles: {error}") from error


def read_npy(path: Path) -> NDArray[Any]:
    """Return the array of a ``.npy`` file.

    Raises:
        SourceError: no such file, or one that cannot be read without pickles.
    """
    data_file(path)
    try:
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size, path.name)
            file.seek(0)
            array: NDArray[Any] = read_array(file, allow_pickle=False)
            return array
    except Exception as error:  # as above
        raise SourceError(f"{path}: cannot be read as .npy without pickles: {error}") from error


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(entry) as file:
        _check_header(file, entry.file_size, entry.filename)
    with archive.open(entry) as file:
        array: NDArray[Any] = read_array(file, allow_pickle=False)
        file.read()  # reach the end, where the checksum is verified
    return array


def _check_header(file: IO[bytes], length: int, name: str) -> None:
    """Check that the header of an array matches the length of its file."""
    version = read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"array {name!r} has a header of version {version}")
    shape, _, dtype = _HEADERS[version](file)
    stated = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or file.tell() + stated != length:
        raise ValueError(
            f"array {name!r} of shape {shape} and {dtype} needs {stated:,} bytes, but has "
            f"{length - file.tell():,}"
        )
