"""Unfolding batch normalizations for training: they normalize again, and the function is unchanged.

Levels that change during training shift the output of a layer. A live normalization removes the
shift at once; with a frozen one, later layers must learn to. The normalizations of a compressed
network are folded, so they are given the statistics of their inputs as mean and variance, and the
weight and bias that keep the function unchanged. At the end they are merged into two vectors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CalibrationError
from ..network.batches import Forward, as_batches, as_forward
from ..network.isolation import isolated_pass
from .fold import affine_of
from .freeze import unfreeze
from .statistics import channel_sums

__all__ = ["unfold_batchnorm"]


@torch.no_grad()
def unfold_batchnorm(
    model: nn.Module,
    names: Sequence[str],
    batches: Iterable[Any] | Tensor | None,
    forward: Forward | None = None,
) -> None:
    """Give folded normalizations of ``model`` the statistics of their inputs, and unfreeze them.

    Args:
        model: changed in place; in evaluation mode its function is unchanged up to float rounding.
        names: normalizations that :func:`freeze_absorbed` froze.
        batches: as for calibration; a few hundred samples are enough. Cost: one pass each.
        forward: calls the network on a batch.

    Raises:
        CalibrationError: no batches, bad values, or a normalization that no batch reaches.
    """
    if batches is None:
        raise CalibrationError(
            "norms='live' needs calibration: batches of training inputs, a few hundred samples, "
            "for the initial statistics of the normalizations."
        )
    norms: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    sums: dict[str, Tensor | float] = defaultdict(float)
    handles = [
        norm.register_forward_pre_hook(_adding(sums, name), with_kwargs=True)
        for name, norm in norms.items()
    ]
    try:
        for seed, batch in enumerate(as_batches(batches, model if forward is None else None)):
            isolated_pass(as_forward(forward), model, batch, seed)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in norms if name not in sums]
    if missing:
        raise CalibrationError(
            f"calibration: no batch reached normalization {missing[0]!r}, so its statistics are "
            "unknown. Pass batches that use all of the network, or norms='absorbed'."
        )
    for name, norm in norms.items():
        _normalize_again(norm, torch.as_tensor(sums[name]))
    unfreeze(model)


def _adding(sums: dict[str, Tensor | float], name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sums[name] = sums[name] + channel_sums(args[0] if args else kwargs["input"])

    return hook


def _normalize_again(norm: Any, sums: Tensor) -> None:
    """Set mean and variance, and the weight and bias that keep the map in evaluation mode."""
    count, total, squares = sums
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    gain, bias = affine_of(norm)
    norm.weight.copy_(gain * (variance + norm.eps).sqrt())
    norm.bias.copy_(bias + gain * mean)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
