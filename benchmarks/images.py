"""Image sets the benchmarks read: CIFAR-10 and MNIST, as uint8 arrays and normalised tensors."""

from __future__ import annotations

import gzip
import lzma
import os
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "CACHE",
    "ROOT",
    "Bytes",
    "cifar10",
    "cifar100",
    "data_folder",
    "mnist",
    "normalise",
    "pixels",
]

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".data"

# The constants the CIFAR-10 networks were trained with.
CIFAR_MEAN = (0.485, 0.456, 0.406)
CIFAR_STD = (0.229, 0.224, 0.225)

Bytes = NDArray[np.uint8]


def data_folder(name: str) -> Path:
    """Return the folder of one data set; leave with directions where there is none."""
    base = Path(os.environ.get("FEWBITS_DATA", ROOT.parent / "shared" / "data"))
    if not (base / name).is_dir():
        sys.exit(
            f"benchmark data {name!r} not found in {base}. Set FEWBITS_DATA to the folder that "
            f"holds {name}/ (benchmarks/README.md says what each folder contains)."
        )
    return base / name


def _predict(canvas: NDArray[np.int16], y: int, x: int) -> NDArray[np.int16]:
    """Predict by the median (LOCO-I) of west, north and west + north - corner."""
    west, north, corner = canvas[y + 1, x], canvas[y, x + 1], canvas[y, x]
    if x == 0:
        west = corner = north
    elif y == 0:
        north = corner = west
    low, high = np.minimum(west, north), np.maximum(west, north)
    return np.clip(west + north - corner, low, high)


def decode_medxz(path: Path) -> Bytes:
    """Decode one lossless CIFAR batch to uint8 (images, 3, 32, 32), channels R, G, B.

    Planes are G, R-G and B-G; residuals of the prediction are zigzag-mapped and xz-compressed.
    """
    with lzma.open(path) as file:
        residual = np.frombuffer(file.read(), np.uint8).reshape(3, -1, 32, 32)
    residual = np.ascontiguousarray(residual.transpose(2, 3, 0, 1)).astype(np.int16)
    residual = (residual >> 1) ^ -(residual & 1)
    canvas = np.zeros((33, 33, 3, residual.shape[-1]), np.int16)
    for y in range(32):
        for x in range(32):
            value = _predict(canvas, y, x) + residual[y, x]
            green = value[0] & 255
            canvas[y + 1, x + 1, 0] = green
            canvas[y + 1, x + 1, 1:] = ((value[1:] + green) & 255) - green
    green, red, blue = canvas[1:, 1:].transpose(2, 3, 0, 1)
    return np.stack([red + green, green, blue + green], axis=1).astype(np.uint8)


def _cached(name: str, batches: list[Path]) -> Bytes:
    """Decode ``batches`` once; later calls map the cached file into memory."""
    path = CACHE / f"{name}.npy"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.concatenate([decode_medxz(batch) for batch in batches]))
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def cifar10(part: str) -> tuple[Bytes, Tensor]:
    """Return uint8 images (n, 3, 32, 32) and int64 labels (n,); ``part`` is "train" or "test"."""
    folder = data_folder("cifar10")
    names = ["test_batch"] if part == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    images = _cached(f"cifar10_{part}", [folder / f"{name}.medxz" for name in names])
    return images, torch.from_numpy(np.load(folder / f"{part}_labels.npy").astype(np.int64))


def cifar100(part: str) -> tuple[Bytes, Tensor]:
    """Return uint8 images (10000, 3, 32, 32) and int64 labels; ``part`` is "train" or "test"."""
    folder, name = data_folder("cifar100"), "train_10k" if part == "train" else part
    images = _cached(f"cifar100_{part}", [folder / f"{name}.medxz"])
    return images, torch.from_numpy(np.load(folder / f"{name}_labels.npy").astype(np.int64))


def normalise(images: Bytes) -> Tensor:
    """Return CIFAR images as the networks expect them: float32, (pixel / 255 - mean) / std."""
    mean = torch.tensor(CIFAR_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(CIFAR_STD).view(1, 3, 1, 1)
    return (torch.from_numpy(np.array(images)).float() / 255 - mean) / std


def pixels(images: Bytes) -> Tensor:
    """Return CIFAR images as ResNet-8 expects them: float32 pixels 0..255."""
    return torch.from_numpy(np.array(images)).float()


def _idx(path: Path) -> Bytes:
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", dimensions, 4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def mnist(part: str, folder: str = "mnist") -> tuple[Tensor, Tensor]:
    """Return float32 images (n, 784) of raw pixels 0..255 and int64 labels (n,).

    Fashion-MNIST, in ``fashion_mnist``, has the same files.
    """
    prefix = data_folder(folder) / ("t10k" if part == "test" else "train")
    images = _idx(Path(f"{prefix}-images-idx3-ubyte.gz"))
    labels = _idx(Path(f"{prefix}-labels-idx1-ubyte.gz"))
    pixels = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32))
    return pixels, torch.from_numpy(labels.astype(np.int64))
