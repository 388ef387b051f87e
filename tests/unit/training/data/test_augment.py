"""Flips and shifts against a loop over images."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fewbits.errors import CalibrationError, ConfigError
from fewbits.training.data.augment import FlipAndCrop


def slow(images, draws, *, flip, padding, mode):
    made = []
    for image, (down, right, mirror) in zip(images, draws.tolist(), strict=True):
        padded = F.pad(image[None], (padding,) * 4, mode=mode)[0] if padding else image
        top, left = int(down * (2 * padding + 1)), int(right * (2 * padding + 1))
        cut = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        made.append(cut.flip(2) if flip and mirror < 0.5 else cut)
    return torch.stack(made)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    ("padding", "mode"), [(0, "constant"), (2, "constant"), (3, "reflect"), (1, "replicate")]
)
def test_it_is_a_crop_and_a_flip(flip, padding, mode):
    images = torch.rand(40, 3, 6, 9)
    augment = FlipAndCrop(flip=flip, padding=padding, mode=mode)
    draws = augment.draw(40, torch.Generator().manual_seed(1))
    wanted = slow(images, draws, flip=flip, padding=padding, mode=mode)
    assert torch.equal(augment.apply(images, draws), wanted)


def test_the_shift_is_an_eighth_by_default():
    images = torch.rand(64, 1, 16, 16)
    augment = FlipAndCrop()
    draws = augment.draw(64, torch.Generator().manual_seed(0))
    assert torch.equal(
        augment.apply(images, draws), slow(images, draws, flip=True, padding=2, mode="constant")
    )


def test_what_is_no_image_and_no_setting_is_refused():
    augment = FlipAndCrop()
    with pytest.raises(CalibrationError, match="images"):
        augment.apply(torch.zeros(3, 4), augment.draw(3, torch.Generator()))
    for wrong in ({"padding": -1}, {"mode": "zeros"}):
        with pytest.raises(ConfigError):
            FlipAndCrop(**wrong)
