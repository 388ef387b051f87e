"""``folder:PATH``: images in one subfolder per class, decoded batch by batch."""

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
_SCAN = b"\xff\xda"  # start-of-scan marker of JPEG; elsewhere it occurs only in the thumbnail
_MOST_SCANS = 100  # progressive files have about ten; each takes the time of the whole image
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
# Pillow goes by content: without this list a .png could be PostScript, run by Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_TEST_NAMES = ("test", "val", "validation")


@dataclass(frozen=True, eq=False)
class FolderSplit(IndexedSplit):
    """Image files and their labels; only one batch at a time is decoded."""

    paths: Sequence[Path] = field(repr=False)
    labels: Tensor = field(repr=False)
    reader: ImageReader

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def fetch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Decode these images."""
        pillow = optional_import("PIL.Image", "image", "decoding images")
        paths = [self.paths[int(index)] for index in indices]
        inputs = self.reader.batch([str(p) for p in paths], lambda k: _open_image(pillow, paths[k]))
        return inputs, self.labels[indices]

    def part(self, indices: NDArray[np.int64]) -> FolderSplit:
        """Return a split with these images only."""
        paths = [self.paths[int(index)] for index in indices]
        return FolderSplit(paths, self.labels[indices], self.reader)


@DATA.register("folder")
def folder(spec: Spec) -> DataSource:
    """Load ``PATH/CLASS/*.png``, or ``PATH/train/CLASS/*`` with ``PATH/test`` (or val).

    Classes are numbered in order of their names. In the first form a fixed random quarter is held
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


def _open_image(pillow: ModuleType, path: Path) -> Any:
    """Open an image, checking that its header states no more pixels than its length allows."""
    if not path.is_file():
        raise ValueError("not a regular file")
    image = pillow.open(path, formats=_FORMATS)
    length = path.stat().st_size
    if math.prod(image.size) > allowed_bytes(length) // _BYTES_PER_PIXEL:
        image.close()
        raise ValueError(f"its header states {image.size} pixels, but it has {length:,} bytes")
    if image.format == "JPEG":
        scans = path.read_bytes().count(_SCAN)
        if scans > _MOST_SCANS:
            image.close()
            raise ValueError(f"it has {scans} scans; the limit is {_MOST_SCANS}")
    return image


def _classes(root: Path) -> list[str]:
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise SourceError(f"{root}: has no subfolders; expected one per class, with images in it.")
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
        files = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in _SUFFIXES)
        paths += files
        labels += [number] * len(files)
    if not paths:
        raise SourceError(
            f"{root}: no images in its {len(classes)} class folders; "
            f"expected files ending in {', '.join(sorted(_SUFFIXES))}."
        )
    return FolderSplit(paths, labels_from(labels, len(classes), str(root)), reader)
