"""What a device must be able to do."""

from __future__ import annotations

import torch

from ..errors import ModelError

__all__ = ["check_float64"]

WITHOUT_FLOAT64 = ("mps",)


def check_float64(device: torch.device, where: str) -> None:
    """Refuse a device that has no float64, before its first kernel fails without saying why.

    Raises:
        ModelError: names ``where`` and the device.
    """
    if device.type in WITHOUT_FLOAT64:
        raise ModelError(
            f"{where}: totals over calibration rows need float64, which the device "
            f"{str(device)!r} does not have. Move the network to the CPU (model.cpu()) or to CUDA, "
            "or use the method 'nearest'."
        )
