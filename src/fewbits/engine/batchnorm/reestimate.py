"""Re-estimation of batch normalization after quantization, relative to the float network.

Textbook re-estimation replaces the running statistics by those of the calibration data, discarding
what training measured on far more, augmented data; that alone can cost the float network accuracy.
Here both networks see the same batches and only the difference is applied: if the input of a
normalization changes from mean m and deviation s to mean m' and deviation s', its running
statistics change by the same affine map.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..network.batches import Forward
from ..network.distributed import ALONE, Ranks
from ..network.isolation import isolated_pass
from .fold import Folded, is_batchnorm
from .statistics import channel_sums

__all__ = ["reestimate_batchnorm"]

_DEAD = 1e-4  # relative to the other network's variance: a hundredth of its deviation
_NOISE = 1e-10  # relative to the mean square; float32 rounding is about 1e-13


@dataclass
class _Moments:
    """Count, sum and sum of squares of a normalization's input in both networks, over all calls."""

    sums: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, reference: Tensor, quantized: Tensor) -> None:
        self.sums = self.sums + torch.stack([reference, quantized])

    def change(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return float mean, quantized mean, and the ratio of deviations, each (channels,).

        The ratio is 1 for a channel that is nearly constant in either network: its deviation is
        rounding noise, which matching would amplify.
        """
        counts, sums, squares = self.sums.unbind(1)
        means, squares = sums / counts, squares / counts
        variances = squares - means.square()
        least, most = variances.amin(0), variances.amax(0)
        alive = (least > _DEAD * most) & (least > _NOISE * squares.amax(0))
        gain = torch.where(alive, variances[1] / variances[0], 1.0).sqrt()
        return means[0], means[1], gain


@torch.no_grad()
def reestimate_batchnorm(
    reference: nn.Module,
    network: nn.Module,
    batches: Sequence[Any],
    forward: Forward,
    folded: Sequence[Folded] = (),
    *,
    ranks: Ranks = ALONE,
) -> tuple[str, ...]:
    """Adapt every batch normalization of ``network`` to its quantized inputs.

    For each batch the float network runs first, then the quantized one, with each normalization's
    input mapped to the float moments on the way, so that later layers see corrected inputs. If a
    layer has absorbed its normalization, the change goes into weight and bias, so that mean and
    variance stay constant. Cost: two forward passes per batch, shared by the ranks, whose sums add
    up. Changes ``network`` in place.

    Returns:
        Names of the normalizations.

    Raises:
        ConfigError: the network has no batch normalization with running statistics.
    """
    norms = {name: m for name, m in network.named_modules() if is_batchnorm(m)}
    if not norms:
        raise ConfigError(
            "stage 'reestimate_batchnorm': the network has no batch normalization with running "
            "statistics. Remove the stage from the recipe."
        )
    moments: dict[str, _Moments] = defaultdict(_Moments)
    for place in ranks.own(len(batches)):  # also the seed, to draw the same numbers in both
        seen: dict[str, list[Tensor]] = defaultdict(list)
        with _intercepted(reference, norms, _record(seen)):
            isolated_pass(forward, reference, batches[place], place)
        with _intercepted(network, norms, _match(seen, moments)):
            isolated_pass(forward, network, batches[place], place)
    absorbed = {pair.norm for pair in folded}
    own = {name: entry.sums for name, entry in moments.items()}
    sums = ranks.total("moments of batch normalizations", own)
    for name, total in sums.items():
        _apply(norms[name], *_Moments(total).change(), name in absorbed)
    return tuple(sums)


@contextmanager
def _intercepted(
    network: nn.Module, names: Iterable[str], change: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call ``change`` on every input of these modules; its result replaces the input."""

    def hook(name: str) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            replaced = change(name, args[0] if args else kwargs["input"])
            if replaced is None:
                return None
            return ((replaced, *args[1:]), kwargs) if args else ((), {**kwargs, "input": replaced})

        return before

    handles = [
        network.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True)
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record(seen: dict[str, list[Tensor]]) -> Callable[[str, Tensor], None]:
    def record(name: str, x: Tensor) -> None:
        seen[name].append(channel_sums(x))

    return record


def _match(
    seen: dict[str, list[Tensor]], moments: dict[str, _Moments]
) -> Callable[[str, Tensor], Tensor | None]:
    """Return a function that maps inputs of the quantized network to the float moments."""

    def match(name: str, x: Tensor) -> Tensor | None:
        if not seen[name]:
            return None  # called more often than in the float network: nothing to match
        reference, quantized = seen[name].pop(0), channel_sums(x)
        moments[name].add(reference, quantized)
        single = _Moments()
        single.add(reference, quantized)
        before, after, gain = single.change()
        shape = (1, -1, *([1] * (x.dim() - 2)))
        mapped = (x - after.reshape(shape).to(x)) / gain.reshape(shape).to(x)
        return mapped + before.reshape(shape).to(x)

    return match


def _apply(norm: Any, before: Tensor, after: Tensor, gain: Tensor, absorbed: bool) -> None:
    gain = gain.to(norm.bias)
    mean = gain * (norm.running_mean - before.to(gain)) + after.to(gain)
    if absorbed:
        scale = norm.weight / gain
        norm.bias.sub_((mean - norm.running_mean) * scale)
        norm.weight.copy_(scale)
    else:
        norm.running_mean.copy_(mean)
        variance = (norm.running_var + norm.eps) * gain.square() - norm.eps
        norm.running_var.copy_(variance.clamp_min(0))
