"""Requirements on devices."""

from __future__ import annotations

import torch

from ..errors import ModelError

__all__ = ["check_float64"]

WITHOUT_FLOAT64 = ("mps",)


def check_float64(device: torch.device, where: str) -> None:
    """Check that a device supports float64, before a kernel fails without a reason.

    Raises:
        ModelError: it does not; names ``where`` and the device.
    """
    if device.type in WITHOUT_FLOAT64:
        raise ModelError(
            f"{where}: sums over calibration rows need float64, which the device "
            f"{str(device)!r} does not support. Move the network to the CPU (model.cpu()) or to "
            "CUDA, or use the method 'nearest'."
        )
