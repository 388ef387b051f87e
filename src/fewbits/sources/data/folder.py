"""``folder:PATH``: pictures in one subfolder per class, decoded when a batch asks for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...errors import SourceError
from ..base.bounded import allowed_bytes
from ..base.dataset import DataSource, IndexedSplit, divide, labels_from
from ..base.registries import DATA
from ..base.spec import Spec, fraction, optional_import
from .images import IMAGE_OPTIONS, ImageReader

__all__ = ["FolderSplit", "folder"]

_BYTES_PER_PIXEL = 4
_SCAN = b"\xff\xda"  # begins a scan of a JPEG, and is nowhere else but in its thumbnail
_MOST_SCANS = 100  # progressive ones have about ten; each takes the time of the whole picture
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
# Pillow looks at the content: without this list a .png could be PostScript, run by Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_TEST_NAMES = ("test", "val", "validation")


@dataclass(frozen=True, eq=False)
class FolderSplit(IndexedSplit):
    """Picture files and their labels; at most one batch is decoded at a time."""

    paths: Sequence[Path] = field(repr=False)
    labels: Tensor = field(repr=False)
    reader: ImageReader

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def fetch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Decode these pictures."""
        pillow = optional_import("PIL.Image", "image", "decoding pictures")
        paths = [self.paths[int(index)] for index in indices]
        inputs = self.reader.batch([str(p) for p in paths], lambda k: _opened(pillow, paths[k]))
        return inputs, self.labels[indices]

    def part(self, indices: NDArray[np.int64]) -> FolderSplit:
        """Return the split of these pictures only."""
        paths = [self.paths[int(index)] for index in indices]
        return FolderSplit(paths, self.labels[indices], self.reader)


@DATA.register("folder")
def folder(spec: Spec) -> DataSource:
    """Load ``PATH/CLASS/*.png``, or ``PATH/train/CLASS/*`` with ``PATH/test`` (or val).

    Classes are numbered in order of their names. Of the first form a fixed random quarter is held
    out as the test split.
    Options: size, resize, channels, mean, std (see ``ImageReader``), test (held-out fraction).
    """
    options = spec.parsed({**IMAGE_OPTIONS, "test": fraction})
    root = Path(spec.need_target("folder", "folder:photos?size=224"))
    if not root.is_dir():
        raise SourceError(f"data folder {str(root)!r} does not exist (looked in {Path.cwd()}).")
    reader = ImageReader.from_options(options)
    held_out = next((root / name for name in _TEST_NAMES if (root / name).is_dir()), None)
    if (root / "train").is_dir() and held_out is not None:
        classes = _classes(root / "train")
        train, test = (_scan(part, classes, reader) for part in (root / "train", held_out))
    else:
        classes = _classes(root)
        every = _scan(root, classes, reader)
        parts = divide(len(every), options.get("test", 0.25), seed=0)
        train, test = (every.part(indices) for indices in parts)
    return DataSource(spec.text, train, test, classes=len(classes), preprocessing=str(reader))


def _opened(pillow: ModuleType, path: Path) -> Any:
    """Open a picture: its header is read, and must not state more pixels than its length allows."""
    if not path.is_file():
        raise ValueError("it is no regular file")
    picture = pillow.open(path, formats=_FORMATS)
    length = path.stat().st_size
    if math.prod(picture.size) > allowed_bytes(length) // _BYTES_PER_PIXEL:
        picture.close()
        raise ValueError(f"it states {picture.size} pixels in {length:,} bytes")
    if picture.format == "JPEG":
        scans = path.read_bytes().count(_SCAN)
        if scans > _MOST_SCANS:
            picture.close()
            raise ValueError(f"it is built up in {scans} scans, of at most {_MOST_SCANS}")
    return picture


def _classes(root: Path) -> list[str]:
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise SourceError(
            f"{root}: has no subfolders; expected one per class, with pictures in it."
        )
    return names


def _scan(root: Path, classes: list[str], reader: ImageReader) -> FolderSplit:
    unknown = set(_classes(root)) - set(classes)
    if unknown:
        raise SourceError(
            f"{root}: class {min(unknown)!r} is not among the training classes "
            f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})."
        )
    paths: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in _SUFFIXES)
        paths += found
        labels += [number] * len(found)
    if not paths:
        raise SourceError(
            f"{root}: no pictures in its {len(classes)} class folders; "
            f"expected files ending in {', '.join(sorted(_SUFFIXES))}."
        )
    return FolderSplit(paths, labels_from(labels, len(classes), str(root)), reader)
