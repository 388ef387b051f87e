"""Calibration data: any iterable, and how a network is called on one batch of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError

__all__ = ["Forward", "as_batches", "call_model", "explained"]

Forward = Callable[[nn.Module, Any], Any]
_LABELS = ("labels", "label")
_STACK = 128  # images of one tensor that go through the network together


def as_batches(calibration: Iterable[Any] | Tensor) -> Sequence[Any]:
    """Return the batches as a sequence, checked to be there and finite.

    A tensor is taken as stacked samples and split into batches of 128; a list or tuple is used as
    it is; any other iterable is read once and its batches are held (inputs only, no activations).

    Raises:
        CalibrationError: no batches, an empty batch, or NaN and infinite inputs (names the batch).
    """
    if isinstance(calibration, Tensor):
        batches: Sequence[Any] = torch.split(calibration, _STACK) if len(calibration) else ()
    elif isinstance(calibration, (list, tuple)):
        batches = calibration
    else:
        try:
            batches = list(calibration)
        except TypeError:
            raise CalibrationError(
                "calibration must be an iterable of batches, or one tensor of stacked samples. "
                f"Got {type(calibration).__name__} instead."
            ) from None
    if not batches:
        raise CalibrationError(
            "calibration data is empty: it has no batch. Pass a loader with at least one batch "
            "(a generator that was read before is empty)."
        )
    for position, batch in enumerate(batches):
        _check(batch, position)
    return batches


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call ``model`` on a tensor, a tuple or list, or a dict; what ``forward=`` replaces.

    A dict is passed by keyword without its labels. Of a tuple, as many leading entries are passed
    as ``model.forward`` requires (at least one), so that (inputs, labels) calls it on the inputs.
    Tensors are moved to the device of the network.
    """
    device = next((t.device for t in chain(model.parameters(), model.buffers())), None)

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) and device is not None else value

    if isinstance(batch, Mapping):
        return model(**{k: moved(v) for k, v in batch.items() if k not in _LABELS})
    if isinstance(batch, (list, tuple)):
        return model(*(moved(value) for value in batch[: _required(model)]))
    return model(moved(batch))


def explained(forward: Forward, stage: str) -> Forward:
    """Return ``forward`` with its failures told as calibration errors of ``stage``."""

    def call(model: nn.Module, batch: Any) -> Any:
        try:
            return forward(model, batch)
        except Exception as error:
            raise CalibrationError(
                f"{stage}: the network's forward raised {type(error).__name__}: {error} on a "
                f"batch of {describe(batch)}. Check the shape of the calibration batches, or pass "
                "forward=lambda model, batch: ... to call the network your way."
            ) from error

    return call


def describe(batch: Any) -> str:
    """Return a few words on what a batch is: types, shapes, dtypes."""
    if isinstance(batch, Tensor):
        return f"shape {tuple(batch.shape)}, {str(batch.dtype).removeprefix('torch.')}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{k}: {describe(v)}" for k, v in batch.items()) + "}"
    if isinstance(batch, (list, tuple)):
        return "(" + "; ".join(describe(value) for value in batch) + ")"
    return type(batch).__name__


def _required(model: nn.Module) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return max(1, sum(p.kind in kinds and p.default is p.empty for p in parameters))


def _check(batch: Any, position: int) -> None:
    for tensor in _tensors(batch):
        if tensor.numel() == 0:
            raise CalibrationError(f"calibration batch {position} is empty: {describe(batch)}.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CalibrationError(
                f"calibration batch {position} holds NaN or infinite values ({describe(batch)}). "
                "Look at the data and its normalisation."
            )


def _tensors(batch: Any) -> Iterable[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _tensors(value)
