"""Inputs of layers in the float network, in one plain pass.

An embedding that is tied to the output layer is used before any other layer, and multiplied after
all of them. It is quantized first, so that all others are calibrated on what became of it; the
inputs that it will be multiplied with are then only known from the float network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...progress import Progress, ProgressEvent, silent
from ..layers.rows import Rows, draw_rows, without_padding
from ..layers.statistics import Statistics, StatisticsAccumulator
from ..layers.targets import Target
from ..layers.views import WeightView
from ..network.batches import Call, Forward
from ..network.distributed import ALONE, Ranks
from ..network.isolation import autocast_off, fast_path_off, isolated_pass
from .quantizer import layer_seed, row_budget, share_of

__all__ = ["float_inputs"]


@dataclass
class _Watcher:
    """Hooks that add the inputs of layers to the statistics of their weights."""

    rows: Mapping[Target, int | None]
    batches: int
    masks: Sequence[Sequence[Tensor]]
    seed: int
    place: int = 0
    sums: dict[str, StatisticsAccumulator] = field(default_factory=dict)

    def hook(self, target: Target, view: WeightView) -> Callable[..., None]:
        @torch.no_grad()
        @autocast_off()
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if view.inputs is not None:
                self._add(target, view.groups, view.inputs(Call(args, kwargs)))

        return enter

    def _add(self, target: Target, groups: int, rows: Rows) -> None:
        name, columns = target.name, target.view.columns(target.shape)
        seen = without_padding(rows, self.masks[self.place] if self.masks else ())
        quota = share_of(row_budget(columns, self.rows[target]), self.place, self.batches)
        if quota and seen.count:
            picks = draw_rows(seen.count, quota, layer_seed(self.seed, name, self.place, 0))
            sums = self.sums.setdefault(name, StatisticsAccumulator(groups, columns, None, name))
            values = seen.take(picks)
            sums.add(values, values, (self.place, 0))

    def finish(self, ranks: Ranks) -> dict[str, Statistics]:
        """Return what all ranks have seen."""
        known = ranks.exchange("inputs of embeddings", {n: s.rows for n, s in self.sums.items()})
        found: dict[str, Statistics] = {}
        for target in self.rows:
            name, view = target.name, (target.seen_at or (None, target.view))[1]
            if not any(name in own for own in known):
                continue
            columns = target.view.columns(target.shape)
            empty = StatisticsAccumulator(view.groups, columns, None, name)
            sums = self.sums.pop(name, empty)
            sums.join(ranks)
            found[name] = sums.finish()
        return found


def float_inputs(
    network: nn.Module,
    targets: Mapping[Target, int | None],
    batches: Sequence[Any],
    forward: Forward,
    *,
    masks: Sequence[Sequence[Tensor]] = (),
    seed: int = 0,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
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
        ranks: who else runs passes, each over its share of the batches.

    Cost: one forward pass per batch, and the moments.
    """
    watcher = _Watcher(targets, len(batches), masks, seed)
    handles = [
        network.get_submodule(target.seen_at[0]).register_forward_pre_hook(
            watcher.hook(target, target.seen_at[1]), with_kwargs=True
        )
        for target in targets
        if target.seen_at is not None
    ]
    own = ranks.own(len(batches))
    progress(ProgressEvent("inputs", 0, len(own)))
    try:
        with torch.no_grad(), fast_path_off():
            for done, place in enumerate(own, 1):
                watcher.place = place
                isolated_pass(forward, network, batches[place], place)
                progress(ProgressEvent("inputs", done, len(own)))
    finally:
        for handle in handles:
            handle.remove()
    return watcher.finish(ranks)
