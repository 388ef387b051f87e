"""Inputs of layers in the float network, in one plain pass.

An embedding that is tied to the output layer is used before any other layer, and multiplied after
all of them. It is quantized first, so that all others are calibrated on what became of it; the
inputs that it will be multiplied with are then only known from the float network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...progress import Progress, ProgressEvent, silent
from ..layers.rows import draw_rows, without_padding
from ..layers.statistics import Statistics, StatisticsAccumulator
from ..layers.targets import Target
from ..network.batches import Call, Forward
from ..network.isolation import autocast_off, fast_path_off, isolated_pass
from .quantizer import layer_seed, row_budget, share_of

__all__ = ["float_inputs"]


def float_inputs(
    network: nn.Module,
    targets: Mapping[Target, int | None],
    batches: Sequence[Any],
    forward: Forward,
    *,
    masks: Sequence[Sequence[Tensor]] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Statistics]:
    """Return the statistics of the first layer of each target whose inputs can be seen.

    Targets without such a layer, or whose layer no batch calls, are left out.

    Args:
        network: in evaluation mode; unchanged afterwards.
        targets: weights, whose layers are given by ``Target.seen_at``, with the row budget of each;
            None for :func:`row_budget`.
        batches: calibration batches.
        forward: calls the network on a batch.
        masks: of each batch, bool (samples, tokens) that are False for padding.
        seed: seed of the rows that are drawn.
        progress: called after each batch, stage "inputs".

    Cost: one forward pass per batch, and the moments.
    """
    sums: dict[str, StatisticsAccumulator] = {}
    place = 0

    def add(target: Target, call: Call) -> None:
        module_view = target.seen_at
        if module_view is None or module_view[1].inputs is None:
            return
        view, columns = module_view[1], target.view.columns(target.shape)
        seen = without_padding(module_view[1].inputs(call), masks[place] if masks else ())
        quota = share_of(row_budget(columns, targets[target]), place, len(batches))
        if quota and seen.count:
            picks = draw_rows(seen.count, quota, layer_seed(seed, target.name, place, 0))
            if target.name not in sums:
                sums[target.name] = StatisticsAccumulator(view.groups, columns, None, target.name)
            values = seen.take(picks)
            sums[target.name].add(values, values)

    def watch(target: Target) -> Any:
        @torch.no_grad()
        @autocast_off()
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            add(target, Call(args, kwargs))

        return hook

    handles = [
        network.get_submodule(target.seen_at[0]).register_forward_pre_hook(
            watch(target), with_kwargs=True
        )
        for target in targets
        if target.seen_at is not None
    ]
    try:
        with torch.no_grad(), fast_path_off():
            progress(ProgressEvent("inputs", 0, len(batches)))
            for place, batch in enumerate(batches):
                isolated_pass(forward, network, batch, place)
                progress(ProgressEvent("inputs", place + 1, len(batches)))
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.finish() for name, total in sums.items()}
