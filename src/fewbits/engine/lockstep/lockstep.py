"""The lockstep: inputs of every layer in the float and in the quantized network, in one run.

A layer-wise method needs, for each layer in order of execution, its input X in the float network
and X~ in the network whose earlier layers are quantized (Lybrand and Saab 2021, section 3). Here
the forward pass of every calibration batch, in both networks, is a task that pauses before a layer.
Once all tasks have shown their inputs, the layer is quantized, and all continue. That costs one
forward pass per batch and network, plus one to find the order, and needs no tracing.

The observed inputs are by definition the same as if both networks were run from the start for every
layer. So a pass is rerun if its past no longer matches the network: when a module that it called
more than once has been quantized, when it ended without reaching a layer, and when
``max_live_bytes`` leaves no room to keep it suspended. The last costs a pass per batch and layer,
but only for the batches beyond the limit at layers where passes hold that much.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...errors import CalibrationError, ConfigError, did_you_mean, require
from ...progress import Progress, silent
from ..network.batches import Forward, as_sequence
from ..network.distributed import ALONE, Ranks
from ..network.isolation import fast_path_off, preserved_draws
from .forward_task import stuck_message, watch
from .scheduler import LockstepReport, Observer, Schedule, Stream

__all__ = ["LockstepReport", "Observer", "run_lockstep"]


def run_lockstep(  # noqa: PLR0917 - a run consists of these six things
    reference: nn.Module,
    quantized: nn.Module,
    targets: Sequence[str],
    batches: Iterable[Any],
    forward: Forward,
    observer: Observer,
    *,
    max_live_bytes: int = 1 << 30,
    needs_reference: bool = True,
    finished: Collection[str] = (),
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> LockstepReport:
    """Show ``observer`` the inputs of every target module, and let it quantize them one by one.

    A module is completed after as many calls per pass as the first batch that reaches it makes;
    further calls are not observed. Random operators draw the same numbers in both networks, seeded
    by the number of the batch.

    Args:
        reference: the float network, in evaluation mode; unused without ``needs_reference``.
        quantized: an independent copy, whose weights ``observer.complete`` changes in place.
        targets: names of modules, in any order; they may contain one another.
        batches: calibration batches. Lists, tuples and tensors are read in place, other iterables
            are read into a list: inputs stay in memory, activations do not.
        forward: ``forward(network, batch)``, called in other threads, one at a time. It gets its
            own copy of the batch's tensors, and must use the network passed to it (a module tree
            over the weights of one of the two). It must not hold a lock or a modified process-wide
            setting while it calls a layer, since other passes run meanwhile.
        observer: called in the caller's thread only, without gradients.
        max_live_bytes: bound on the activations of suspended passes; at least one batch is in
            flight. It affects the cost, not the results.
        needs_reference: if False, one pass per batch; the observer gets one call twice.
        finished: targets that an earlier run completed, in ``quantized`` as well: passes call them,
            but the observer does not get to see them.
        progress: called for every completed module, stage "quantize".
        ranks: who else runs passes, each over its share of the batches.

    Raises:
        ConfigError: a target that does not exist, or two names of one module.
        CalibrationError: no batches, a forward that raises, or one that cannot be stopped.
            Exceptions of the observer are passed through unchanged.
    """
    require(max_live_bytes >= 0, "max_live_bytes", "a number of bytes >= 0", max_live_bytes)
    names = list(dict.fromkeys(targets))
    held = as_sequence(batches)
    streams = [Stream("quantized", quantized)]
    if needs_reference:
        streams.insert(0, Stream("reference", reference))
    with torch.no_grad(), fast_path_off(), preserved_draws(), _watched(streams, names):
        schedule = Schedule(streams, held, forward, observer, ranks)
        try:
            report = schedule.run(names, max_live_bytes, progress, finished)
        except BaseException:
            stuck = schedule.close()
            if stuck:
                warnings.warn(stuck_message(stuck), RuntimeWarning, stacklevel=2)
            raise
        stuck = schedule.close()
        if stuck:
            raise CalibrationError(stuck_message(stuck))
        return report


@contextmanager
def _watched(streams: Sequence[Stream], names: Sequence[str]) -> Iterator[None]:
    watched = [_find(stream.network, names) for stream in streams]
    handles = [handle for modules in watched for handle in watch(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _find(network: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    known = dict(network.named_modules(remove_duplicate=False))
    modules: dict[str, nn.Module] = {}
    first: dict[int, str] = {}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"target {name!r} is not a module of the {type(network).__name__}."
                f"{did_you_mean(name, known)} Targets are names from named_modules()."
            )
        other = first.setdefault(id(known[name]), name)
        if other != name:
            raise ConfigError(
                f"targets {other!r} and {name!r} are one module under two names. List one of them."
            )
        modules[name] = known[name]
    return modules
