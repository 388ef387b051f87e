"""``npz:FILE``: arrays x and y (split here), or x_train, y_train, x_test, y_test."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import (
    MAGIC_PREFIX,
    read_array,
    read_array_header_1_0,
    read_array_header_2_0,
    read_magic,
)
from numpy.typing import NDArray

from ...errors import SourceError
from ..base.bounded import allowed_bytes, check_archive
from ..base.dataset import ArraySplit, DataSource, Normalization, divide, labels_from
from ..base.registries import DATA
from ..base.spec import Spec, fraction, numbers, whole

__all__ = ["image_normalization", "npz"]

_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): read_array_header_1_0,
    (2, 0): read_array_header_2_0,
}
_NAMES = {"x", "y", "x_train", "y_train", "x_test", "y_test"}


@DATA.register("npz")
def npz(spec: Spec) -> DataSource:
    """Load arrays from a ``.npz`` file.

    ``x`` ``(n, ...)`` is used as stored (channels first for images): uint8 is divided by 255, other
    dtypes become float32. ``y`` ``(n,)`` holds class numbers. Without ``x_test``, a fixed random
    quarter is held out for testing (option ``test=0.25``). Options: mean, std, classes, test.
    """
    options = spec.parsed({"mean": numbers, "std": numbers, "classes": whole, "test": fraction})
    path = Path(spec.need_target("file", "npz:data.npz"))
    arrays, names = _read(path)
    classes = options.get("classes")
    parts = {
        name: _pair(arrays, name, classes, path, names)
        for name in ("x", "x_train", "x_test")
        if name in arrays
    }
    if "x" in parts:
        x, y = parts["x"]
        train, test = divide(len(y), options.get("test", 0.25), seed=0)
        parts = {"x_train": (x[train], y[train]), "x_test": (x[test], y[test])}
    if not parts:
        raise SourceError(
            f"{path}: contains no array x or x_train; it has: {names}. "
            "Save it with numpy.savez(path, x=inputs, y=labels)."
        )
    normalization = image_normalization(options, next(iter(parts.values()))[0].dtype)
    splits = {name[2:]: ArraySplit(x, y, normalization) for name, (x, y) in parts.items()}
    count = classes or 1 + max(int(y.max()) for _, y in parts.values())
    return DataSource(
        spec.text,
        splits.get("train"),
        splits.get("test"),
        classes=count,
        preprocessing=str(normalization),
    )


def image_normalization(options: dict[str, Any], dtype: torch.dtype) -> Normalization:
    """Return the normalization for the options and stored dtype; uint8 is scaled to [0, 1]."""
    scale = 1 / 255 if dtype == torch.uint8 else 1.0
    return Normalization(scale, options.get("mean", (0.0,)), options.get("std", (1.0,)))


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the arrays with known names, and a list of all names for messages."""
    if not path.is_file():
        raise SourceError(f"data file {str(path)!r} does not exist (looked in {Path.cwd()}).")
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX:
                raise SourceError(f"{path}: is a single array; expected a .npz with x and y.")
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path)
            entries = {e.filename.removesuffix(".npy"): e for e in archive.infolist()}
            arrays = {
                name: _array(archive, entry) for name, entry in entries.items() if name in _NAMES
            }
            return arrays, ", ".join(sorted(entries)) or "none"
    except SourceError:
        raise
    except Exception as error:  # NumPy parses headers as Python, so damage can raise anything
        raise SourceError(f"{path}: cannot be read as .npz without pickles: {error}") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    """Read one array, after checking that its header matches the length of the entry."""
    with archive.open(entry) as file:
        version = read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"array {entry.filename!r} has a header of version {version}")
        shape, _, dtype = _HEADERS[version](file)
        stated = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or file.tell() + stated != entry.file_size:
            raise ValueError(
                f"array {entry.filename!r} of shape {shape} and {dtype} needs {stated:,} bytes, "
                f"but has {entry.file_size - file.tell():,}"
            )
    with archive.open(entry) as file:
        array: NDArray[Any] = read_array(file, allow_pickle=False)
        file.read()  # reach the end, where the checksum is verified
    return array


def _pair(
    arrays: dict[str, NDArray[Any]], name: str, classes: int | None, path: Path, names: str
) -> tuple[torch.Tensor, torch.Tensor]:
    label_name = name.replace("x", "y", 1)
    if label_name not in arrays:
        raise SourceError(f"{path}: has {name!r} but no labels {label_name!r}; it has: {names}.")
    x, labels = arrays[name], arrays[label_name]
    allowed = allowed_bytes(path.stat().st_size)
    if 4 * x.size + 8 * labels.size > allowed:
        raise SourceError(
            f"{path}: {name} and {label_name} hold {x.size + labels.size:,} numbers, which need "
            f"more than the limit of {allowed:,} bytes for a file of this length. Save it without "
            "compression."
        )
    y = labels_from(labels, classes, f"{path}: {label_name}")
    if x.ndim == 0:
        raise SourceError(f"{path}: {name} is a single value; expected samples along its axis 0.")
    if len(x) != len(y) or not len(y):
        raise SourceError(
            f"{path}: {name} has {len(x)} samples but {label_name} has {len(y)}; "
            "expected the same number, at least 1."
        )
    if x.dtype.kind not in "fiub":
        raise SourceError(f"{path}: {name} has dtype {x.dtype}; expected numbers.")
    native = x.astype(x.dtype.newbyteorder("="), copy=False)
    if native.dtype != np.uint8:
        native = native.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(native)), y
