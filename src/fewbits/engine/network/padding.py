"""Padding in batches of sequences: which tokens of a batch are real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from ...errors import CalibrationError, ConfigError
from .batches import describe

__all__ = ["Mask", "as_mask", "keep_real", "masks_of", "own_masks"]

Mask: TypeAlias = Callable[[Any], "Tensor | Sequence[Tensor] | None"]

_KEYS = ("attention_mask", "decoder_attention_mask")


def own_masks(batch: Any) -> list[Tensor]:
    """Return the masks that a batch carries: ``attention_mask`` and the decoder's, of a dict.

    Those of more axes are left out: they say who sees whom rather than what is real.
    """
    given = [batch.get(key) for key in _KEYS] if isinstance(batch, Mapping) else []
    return [mask for mask in given if isinstance(mask, Tensor) and mask.dim() == 2]


def as_mask(mask: Mask | None) -> Mask:
    """Return the function that finds the masks of a batch: ``mask``, or :func:`own_masks`.

    Raises:
        ConfigError: ``mask`` is not callable.
    """
    if mask is None:
        return own_masks
    if not callable(mask):
        raise ConfigError(
            "mask must be a function of a batch that returns a tensor (samples, tokens), zero for "
            f"padding, such as mask=lambda batch: batch['mask']. Got {type(mask).__name__} instead."
        )
    return mask


def masks_of(batch: Any, place: int, mask: Mask) -> list[Tensor]:
    """Return the masks of a batch as bool (samples, tokens), False for padding.

    Raises:
        CalibrationError: a function of the caller returned anything but matrices.
    """
    found = mask(batch)
    given = [found] if isinstance(found, Tensor) else list(found or ())
    for one in given:
        if not isinstance(one, Tensor) or one.dim() != 2:
            raise CalibrationError(
                f"mask returned a {describe(one)} for calibration batch {place}; it must be a "
                "tensor of shape (samples, tokens), zero for padding, or None."
            )
    return [one.detach().to(device="cpu") != 0 for one in given]


def keep_real(values: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Return ``values`` (samples, tokens, ...) with zeros at padding."""
    for mask in masks:
        if values.dim() > 2 and tuple(values.shape[:2]) == tuple(mask.shape):
            shape = (*mask.shape, *[1] * (values.dim() - 2))
            return values * mask.reshape(shape).to(values)
    return values
