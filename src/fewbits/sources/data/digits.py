"""``digits``: 1,797 real 8x8 handwritten digits, included in scikit-learn. No download."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from ..base.dataset import ArraySplit, DataSource, Normalization, divide
from ..base.registries import DATA
from ..base.spec import Spec

__all__ = ["digits"]

_TEST_FRACTION = 0.25
_SPLIT_SEED = 20260101


@DATA.register("digits")
def digits(spec: Spec) -> DataSource:
    """Load inputs ``(n, 1, 8, 8)`` and labels of ten classes, with a fixed split.

    1,348 training and 449 test images. Stored pixels are 0 to 16; mean and standard deviation are
    those of the training images.
    """
    spec.parsed({})
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    normalization = Normalization(scale=1 / 16, mean=(0.305,), std=(0.376,))
    train, test = (
        ArraySplit(images[index], labels[index], normalization)
        for index in divide(len(labels), _TEST_FRACTION, _SPLIT_SEED)
    )
    return DataSource(spec.text, train, test, classes=10, preprocessing=str(normalization))
