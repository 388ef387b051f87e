"""Calibration data as any iterable, and calling a network on a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...errors import CalibrationError, ConfigError, ModelError

__all__ = [
    "Call",
    "Forward",
    "as_batches",
    "as_forward",
    "as_sequence",
    "call_model",
    "describe",
    "explained",
    "is_encoder_decoder",
    "labels_of",
]

Forward = Callable[[nn.Module, Any], Any]
_LABELS = ("labels", "label")
_DECODER_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")
_HALVES = (torch.float16, torch.bfloat16)
_STACK = 128  # samples per batch when a tensor of stacked samples is split
_TOLD = 6  # entries of a batch that a message describes


@dataclass(frozen=True)
class Call:
    """The inputs of one call of a module, after the pre-hooks registered before ours.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        chosen: an operation before it in its pass that may have moved rows depending on values; ""
            if there is none.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    chosen: str = ""


def as_batches(
    calibration: Iterable[Any] | Tensor, model: nn.Module | None = None
) -> Sequence[Any]:
    """Return the batches as a sequence, checked to be valid.

    A tensor is taken as stacked samples and split into batches of 128; a list or tuple is used as
    it is; any other iterable is read once and its batches are kept (inputs only, no activations).

    The first input of the network must be finite. With ``model``, which :func:`call_model` will
    call, its other inputs may be infinite (attention masks) but not NaN, and labels that it does
    not get may be anything. Without it, with the caller's ``forward=``, it is unknown which of them
    are used; NaN is then found at the first layer that sees it.

    Raises:
        CalibrationError: no batches, an empty batch, or bad values (names the batch).
    """
    if isinstance(calibration, Tensor):
        if calibration.dim() == 0:
            raise CalibrationError(
                f"calibration has no samples: it is a {describe(calibration)}. Pass samples "
                "stacked along the first axis, or an iterable of batches."
            )
        calibration = torch.split(calibration, _STACK) if len(calibration) else ()
    batches = as_sequence(calibration)
    for position, batch in enumerate(batches):
        _check(batch if model is None else _passed(model, batch), position, model is not None)
    return batches


def as_sequence(batches: Iterable[Any]) -> Sequence[Any]:
    """Return batches that can be counted and indexed: a list, tuple or tensor is used as it is.

    Raises:
        CalibrationError: not a series of batches, or an empty one.
    """
    if isinstance(batches, (list, tuple, Tensor)):
        held: Any = batches
    else:
        _check_is_series(batches)
        held = list(batches)
    if len(held) == 0:
        raise CalibrationError(
            "calibration data is empty, it contains no batch. Pass at least one; an iterator that "
            "was used before is empty."
        )
    return cast("Sequence[Any]", held)


def as_forward(forward: Forward | None) -> Forward:
    """Return the function that calls the network: ``forward``, or :func:`call_model` for None.

    Raises:
        ConfigError: ``forward`` is not callable.
    """
    if forward is None:
        return call_model
    if not callable(forward):
        raise ConfigError(
            "forward must be a function of the network and a batch, such as "
            f"forward=lambda model, batch: model(batch[0]). Got {type(forward).__name__} instead."
        )
    return forward


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call ``model`` on a tensor, tuple, list or dict; ``forward=`` replaces this.

    A dict is passed as keywords, without its labels; an encoder-decoder, which makes the inputs of
    its decoder of them, gets labels of tokens. Of a tuple, as many leading entries are passed as
    ``model.forward`` requires (at least one), so (inputs, labels) calls it on the inputs. Tensors
    are moved to the device of the network. If all its parameters are float16 or bfloat16, so become
    its first input and, of a dict, entries of two or more dimensions, masks aside, that are
    float32.
    """
    device = next((t.device for t in chain(model.parameters(), model.buffers())), None)
    half = _half(model)

    def moved(value: Any, data: bool) -> Any:
        if not isinstance(value, Tensor) or device is None:
            return value
        return value.to(device, half if data and value.dtype == torch.float32 else None)

    passed = _passed(model, batch)
    if isinstance(passed, Mapping):
        return model(**{key: moved(value, _is_data(key, value)) for key, value in passed.items()})
    if isinstance(passed, (list, tuple)):
        return model(*(moved(value, place == 0) for place, value in enumerate(passed)))
    return model(moved(passed, True))


def labels_of(batch: Any) -> Tensor | None:
    """Return the class labels, int64 ``(n,)``, of ``(inputs, ..., labels)`` or a dict, or None."""
    labels: Any = None
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in _LABELS if key in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        labels = batch[-1]
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1:
        return None
    return labels.long()


def explained(forward: Forward, stage: str) -> Forward:
    """Wrap ``forward`` to raise its failures as calibration errors of ``stage``."""

    def call(model: nn.Module, batch: Any) -> Any:
        try:
            return forward(model, batch)
        except ModelError:  # says itself what to do
            raise
        except Exception as error:
            advice = _dtype_advice(model, batch, error) or (
                "Check the shape of the calibration batches, or pass forward=lambda model, batch: "
                "... to call the network your way."
            )
            raise CalibrationError(
                f"{stage}: the network's forward raised {type(error).__name__}: {error} on a "
                f"{describe(batch)}. {advice}"
            ) from error

    return call


def _dtype_advice(model: nn.Module, batch: Any, error: Exception) -> str:
    """Explain an error of a network and a batch whose floating-point dtypes differ."""
    given = {t.dtype for t in _tensors(batch) if t.is_floating_point()}
    own = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if not given or not own or given == own or "type" not in str(error):
        return ""
    names = [
        " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        for dtypes in (own, given)
    ]
    first = min(own, key=str, default=torch.float32)
    return (
        f"The network is {names[0]}, but the batch is {names[1]}. Convert the batches, such as by "
        f"batch.to({first}), or the network, by model.float(); or pass forward=lambda model, "
        f"batch: model(batch.to({first}))."
    )


def describe(batch: Any) -> str:
    """Describe a batch for messages: kinds, dtypes and shapes."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        parts = [f"{key}: {describe(value)}" for key, value in list(batch.items())[:_TOLD]]
    elif isinstance(batch, (tuple, list)):
        parts = [describe(value) for value in batch[:_TOLD]]
    else:
        return type(batch).__name__
    return f"{type(batch).__name__} of {', '.join(parts) or 'nothing'}"


def _check_is_series(batches: Any) -> None:
    kind = type(batches).__name__
    if isinstance(batches, (Mapping, str, bytes)) or not (
        isinstance(batches, Iterable) or hasattr(batches, "__getitem__")
    ):
        raise CalibrationError(
            "calibration must be an iterable of batches, or one tensor of stacked samples. "
            f"Got {kind}; wrap a single batch in a list."
        )
    indexed = hasattr(batches, "__getitem__") and hasattr(batches, "__len__")
    if indexed and not isinstance(batches, Sequence):
        raise CalibrationError(
            "calibration must be an iterable of batches, or one tensor of stacked samples. "
            f"Got {kind}, which yields single samples. Wrap it in "
            "torch.utils.data.DataLoader(..., batch_size=32), or list() it if they are batches."
        )


def _passed(model: nn.Module, batch: Any) -> Any:
    """Return the part of a batch that :func:`call_model` passes to the network."""
    if isinstance(batch, Mapping):
        left_out = _LABELS[1:] if _decodes_labels(model, batch) else _LABELS
        return {key: value for key, value in batch.items() if key not in left_out}
    if isinstance(batch, (list, tuple)):
        return batch[: _required(model)]
    return batch


def is_encoder_decoder(model: nn.Module) -> bool:
    """Return whether a network says of itself that it has an encoder and a decoder."""
    config = getattr(_inside(model), "config", None)
    return getattr(config, "is_encoder_decoder", False) is True


def _decodes_labels(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Return whether the labels of a batch are the inputs of the network's decoder."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() < 2 or not is_encoder_decoder(model):
        return False
    given = any(batch.get(name) is not None for name in _DECODER_INPUTS)
    return not given and "labels" in inspect.signature(_inside(model).forward).parameters


def _is_data(name: str, value: Any) -> bool:
    """Return whether an entry of a batch is data, rather than a mask or a step of time."""
    return isinstance(value, Tensor) and value.dim() >= 2 and "mask" not in name


def _half(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of all floating-point parameters, if that is float16 or bfloat16."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return next((half for half in _HALVES if dtypes == {half}), None)


def _inside(model: nn.Module) -> nn.Module:
    """Unwrap a network from torch.compile, DistributedDataParallel or Fabric."""
    for name in ("_original_module", "_orig_mod"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return _inside(inner)
    return _inside(model.module) if isinstance(model, DistributedDataParallel) else model


def _required(model: nn.Module) -> int:
    model = _inside(model)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return max(1, sum(p.kind in kinds and p.default is p.empty for p in parameters))


def _check(batch: Any, position: int, used: bool) -> None:
    """Check the first tensor, and the others as far as they are known to be used."""
    for place, tensor in enumerate(_tensors(batch)):
        if tensor.numel() == 0 and (used or place == 0):
            raise CalibrationError(f"calibration batch {position} is empty: {describe(batch)}.")
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        bad = not torch.isfinite(tensor).all() if place == 0 else used and tensor.isnan().any()
        if bad:
            raise CalibrationError(
                f"calibration batch {position} contains NaN or infinite values "
                f"({describe(batch)}). Check the data and its normalization."
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
