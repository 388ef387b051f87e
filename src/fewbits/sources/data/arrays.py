"""``npz:FILE``: arrays x and y (split here), or x_train, y_train, x_test, y_test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import SourceError
from ..base.array_files import read_npz
from ..base.bounded import allowed_bytes
from ..base.dataset import ArraySplit, DataSource, Normalization, divide, labels_from
from ..base.registries import DATA
from ..base.spec import Spec, choice, fraction, numbers, whole

__all__ = ["image_normalization", "npz"]

_NAMES = {"x", "y", "x_train", "y_train", "x_test", "y_test"}
_OPTIONS = {
    **{"mean": numbers, "std": numbers, "classes": whole, "test": fraction},
    "dtype": choice("float32"),
}


@DATA.register("npz")
def npz(spec: Spec) -> DataSource:
    """Load arrays from a ``.npz`` file.

    ``x`` ``(n, ...)`` is used as stored (channels first for images): uint8 is divided by 255, other
    integers (tokens) stay integers, int64, unless mean, std or ``dtype=float32`` is given, and
    floats become float32. ``y`` ``(n,)`` holds class numbers; without it a batch is only the
    inputs, which is enough for calibration. Without ``x_test``, a fixed random quarter is held out
    for testing (option ``test=0.25``). Options: mean, std, dtype, classes, test.
    """
    options = spec.parsed(_OPTIONS)
    path = Path(spec.need_target("file", "npz:data.npz"))
    arrays, names = read_npz(path, _NAMES)
    as_floats = bool({"mean", "std", "dtype"} & set(options))
    classes = options.get("classes")
    parts: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {
        name: _pair(arrays, name, classes, path, as_floats=as_floats)
        for name in ("x", "x_train", "x_test")
        if name in arrays
    }
    if "x" in parts:
        x, y = parts["x"]
        rows = zip(("x_train", "x_test"), divide(len(x), options.get("test", 0.25), 0), strict=True)
        parts = {name: (x[row], None if y is None else y[row]) for name, row in rows}
    if not parts:
        raise SourceError(
            f"{path}: contains no array x or x_train; it has: {names}. "
            "Save it with numpy.savez(path, x=inputs, y=labels)."
        )
    dtype = next(iter(parts.values()))[0].dtype
    normalization = None if dtype == torch.int64 else image_normalization(options, dtype)
    splits = {name[2:]: ArraySplit(x, y, normalization) for name, (x, y) in parts.items()}
    highest = [int(y.max()) for _, y in parts.values() if y is not None]
    count = classes or (1 + max(highest) if highest else None)
    return DataSource(
        spec.text,
        splits.get("train"),
        splits.get("test"),
        classes=count,
        preprocessing=("inputs as they are" if normalization is None else str(normalization))
        + ("" if highest else ", no labels"),
    )


def image_normalization(options: dict[str, Any], dtype: torch.dtype) -> Normalization:
    """Return the normalization for the options and stored dtype; uint8 is scaled to [0, 1]."""
    scale = 1 / 255 if dtype == torch.uint8 else 1.0
    return Normalization(scale, options.get("mean", (0.0,)), options.get("std", (1.0,)))


def _pair(
    arrays: dict[str, NDArray[Any]], name: str, classes: int | None, path: Path, *, as_floats: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return inputs and labels, which may be absent."""
    label_name = name.replace("x", "y", 1)
    x, labels = arrays[name], arrays.get(label_name)
    if x.ndim == 0:
        raise SourceError(f"{path}: {name} is a single value; expected samples along its axis 0.")
    if x.dtype.kind not in "fiub":
        raise SourceError(f"{path}: {name} has dtype {x.dtype}; expected numbers.")
    tokens = x.dtype.kind in "iu" and x.dtype != np.uint8 and not as_floats
    _check_memory(x, labels, 8 if tokens else 4, path, name)
    y = None if labels is None else labels_from(labels, classes, f"{path}: {label_name}")
    if not len(x) or (y is not None and len(x) != len(y)):
        has = "no labels" if y is None else f"{label_name} has {len(y)}"
        raise SourceError(
            f"{path}: {name} has {len(x)} samples but {has}; expected the same number, at least 1."
        )
    return _tensor(x, as_tokens=tokens), y


def _check_memory(
    x: NDArray[Any], labels: NDArray[Any] | None, size: int, path: Path, name: str
) -> None:
    allowed = allowed_bytes(path.stat().st_size)
    count = 0 if labels is None else labels.size
    if size * x.size + 8 * count > allowed:
        raise SourceError(
            f"{path}: {name} and its labels hold {x.size + count:,} numbers, which need more than "
            f"the limit of {allowed:,} bytes for a file of this length. Save it without "
            "compression."
        )


def _tensor(x: NDArray[Any], *, as_tokens: bool) -> torch.Tensor:
    native = x.astype(x.dtype.newbyteorder("="), copy=False)
    if as_tokens:
        native = native.astype(np.int64)
    elif native.dtype != np.uint8:
        native = native.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(native))
