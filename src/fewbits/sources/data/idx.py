"""``idx:FOLDER``: the files of MNIST, Fashion-MNIST, KMNIST and EMNIST, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import SourceError
from ..base.bounded import allowed_bytes
from ..base.dataset import ArraySplit, DataSource, labels_from
from ..base.registries import DATA
from ..base.spec import Spec, numbers, whole
from .arrays import image_normalization

__all__ = ["has_idx_files", "idx", "read_idx"]

_UNSIGNED_BYTE = 8
_MOST_AXES = 4
_SUFFIXES = ("-idx{rank}-ubyte.gz", "-idx{rank}-ubyte", ".idx{rank}-ubyte.gz", ".idx{rank}-ubyte")


@DATA.register("idx")
def idx(spec: Spec) -> DataSource:
    """Load a folder of idx files: inputs ``(n, 1, height, width)``, pixels / 255.

    Reads ``train-images``, ``train-labels``, ``t10k-images`` and ``t10k-labels``; at least one of
    the pairs must exist. Options: mean, std (of pixels / 255) and classes.
    """
    options = spec.parsed({"mean": numbers, "std": numbers, "classes": whole})
    folder = Path(spec.need_target("folder", "idx:mnist"))
    if not folder.is_dir():
        raise SourceError(f"data folder {str(folder)!r} does not exist (looked in {Path.cwd()}).")
    normalization = image_normalization(options, torch.uint8)
    splits = {}
    classes = options.get("classes", 0)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pair = _load_pair(folder, prefix, options.get("classes"))
        if pair is not None:
            splits[split] = ArraySplit(*pair, normalization)
            classes = max(classes, int(pair[1].max()) + 1)
    if not splits:
        raise SourceError(
            f"{folder}: contains no idx files; expected train-images-idx3-ubyte[.gz] and "
            "train-labels-idx1-ubyte[.gz], t10k-... for the test split."
        )
    return DataSource(
        spec.text,
        splits.get("train"),
        splits.get("test"),
        classes=classes,
        preprocessing=str(normalization),
    )


def has_idx_files(folder: Path) -> bool:
    """Return whether a folder contains MNIST-style image files."""
    return any(_find(folder, f"{prefix}-images", 3) for prefix in ("train", "t10k"))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes.

    Raises:
        SourceError: damaged gzip, wrong magic, or a length that disagrees with the header.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            shape = _shape(file, path)
            count = math.prod(shape)
            data = file.read(count)
            longer = file.read(1)  # at the end gzip verifies its checksum
            if len(data) < count or longer:
                start = 4 + 4 * len(shape)
                actual = "more" if longer else f"{start + len(data):,}"
                raise SourceError(
                    f"{path}: has {actual} bytes where its header, shape {shape}, states "
                    f"{start + count:,}. It is truncated or damaged; download it again."
                )
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be read: {error}. Download it again.") from error
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(file: gzip.GzipFile | BufferedReader, path: Path) -> tuple[int, ...]:
    """Read the header and return the shape that it states."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] != _UNSIGNED_BYTE or not start[3]:
        raise SourceError(
            f"{path}: cannot be read: not an idx file of unsigned bytes; it begins with {start!r}."
        )
    if start[3] > _MOST_AXES:
        raise SourceError(f"{path}: states {start[3]} axes; the limit is {_MOST_AXES}.")
    sizes = file.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise SourceError(f"{path}: ends within its header; download it again.")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    length = path.stat().st_size
    width = 8 if len(shape) == 1 else 1  # labels become int64
    most = allowed_bytes(length) // width
    if math.prod(max(1, size) for size in shape) > most:
        raise SourceError(
            f"{path}: states shape {shape} in {length:,} bytes; the limit for this length is "
            f"{most:,} values. Download it again, or unpack it with gunzip."
        )
    return shape


def _find(folder: Path, stem: str, rank: int) -> Path | None:
    candidates = (folder / (stem + suffix.format(rank=rank)) for suffix in _SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _load_pair(
    folder: Path, prefix: str, classes: int | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    images, labels = _find(folder, f"{prefix}-images", 3), _find(folder, f"{prefix}-labels", 1)
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        missing = "images" if images is None else "labels"
        raise SourceError(f"{folder}: the {prefix}-{missing} file is missing.")
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or len(x) != len(y) or not len(y):
        raise SourceError(
            f"{images}: shape {x.shape} does not fit the {len(y)} labels of {labels.name}; "
            "expected (n, height, width) and (n,), n >= 1."
        )
    return torch.from_numpy(x.copy()).unsqueeze(1), labels_from(y, classes, str(labels))
