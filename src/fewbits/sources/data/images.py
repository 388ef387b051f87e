"""Image files to tensors: decode, resize, crop. Needs pillow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import SourceError
from ..base.dataset import Normalization
from ..base.spec import OptionParser, choice, numbers, optional_import, whole

__all__ = ["IMAGE_OPTIONS", "ImageReader"]

IMAGE_OPTIONS: Mapping[str, OptionParser] = {
    "size": whole,
    "resize": whole,
    "channels": choice("1", "3"),
    "mean": numbers,
    "std": numbers,
}


_MOST_PIXELS = 1 << 26  # of a resized image: long, thin ones would grow without bound
_UNIT = Normalization(1 / 255)


@dataclass(frozen=True)
class ImageReader:
    """Settings for decoding images to uint8 ``(channels, height, width)``.

    Attributes:
        size: side of the square cropped from the middle; None keeps the image's own size.
        resize: length of the shorter side before cropping; None means ``size``.
        channels: 3 (RGB) or 1 (grey).
        normalization: applied to the batch, including the division by 255.
    """

    size: int | None = None
    resize: int | None = None
    channels: int = 3
    normalization: Normalization = _UNIT

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ImageReader:
        """Build a reader from the parsed options of a source."""
        size, resize = options.get("size"), options.get("resize")
        if size is not None and resize is not None and resize < size:
            raise SourceError(
                f"resize={resize} is smaller than size={size}; it must be at least as large."
            )
        normalization = Normalization(
            1 / 255, options.get("mean", (0.0,)), options.get("std", (1.0,))
        )
        return cls(size, resize, int(options.get("channels", 3)), normalization)

    def __call__(self, opened: Any) -> Tensor:
        """Convert, resize and crop an open Pillow image."""
        image = opened.convert("RGB" if self.channels == 3 else "L")
        shorter = self.resize or self.size
        if shorter is not None and min(image.size) != shorter:
            ratio = shorter / min(image.size)
            sides = tuple(max(shorter, round(side * ratio)) for side in image.size)
            if math.prod(sides) > _MOST_PIXELS:
                raise ValueError(f"resizing its shorter side to {shorter} would make it {sides}")
            image = image.resize(sides, resample=2)  # 2 is bilinear, with antialiasing
        if self.size is not None:
            left, top = ((side - self.size) // 2 for side in image.size)
            image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
        return pixels.unsqueeze(0) if self.channels == 1 else pixels.permute(2, 0, 1).contiguous()

    def batch(self, names: list[str], open_image: Callable[[int], Any]) -> Tensor:
        """Return normalized float32 ``(n, channels, height, width)`` of ``open_image(0..n-1)``.

        Raises:
            SourceError: an image cannot be decoded, or sizes differ; names the image.
        """
        optional_import("PIL.Image", "image", "decoding images")
        tensors: list[Tensor] = []
        for position, name in enumerate(names):
            try:
                with open_image(position) as opened:
                    tensors.append(self(opened))
            except Exception as error:  # Pillow's decoders raise anything on damaged files
                raise SourceError(f"image {name} cannot be decoded: {error}") from error
            if tensors[-1].shape != tensors[0].shape:
                raise SourceError(
                    f"images differ in size: {names[0]} is {_size(tensors[0])}, {name} is "
                    f"{_size(tensors[-1])}. Add ?size=SIDE to the source to crop squares."
                )
        return self.normalization(torch.stack(tensors))

    def __str__(self) -> str:
        words = [str(self.normalization)]
        if self.resize or self.size:
            words.append(f"shorter side {self.resize or self.size}")
        if self.size:
            words.append(f"center crop {self.size}x{self.size}")
        return "; ".join(words)


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
