"""Batch normalization re-estimated after quantization, relative to the float network.

Textbook re-estimation replaces running statistics by those of the calibration data, and throws away
what training measured over far more data, with its augmentation: that alone can cost the float
network points. Here both networks see the same batches and only the change between them is applied:
where the input of a normalization went from mean m and deviation s to mean m' and deviation s', its
running statistics move by the same affine map.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .batches import Forward
from .fold import Folded, is_batchnorm

__all__ = ["reestimate_batchnorm"]

_TINY = 1e-12


@dataclass
class _Moments:
    """Mean and mean square of a normalization's input, summed over calls, in both networks."""

    count: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, reference: Tensor, quantized: Tensor) -> None:
        self.sums = self.sums + torch.stack([reference, quantized])
        self.count += 1

    def change(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return float mean, quantized mean, and the ratio of deviations: each (channels,)."""
        means, squares = (self.sums / self.count).unbind(1)
        variances = (squares - means.square()).clamp_min(0)
        gain = ((variances[1] + _TINY) / (variances[0] + _TINY)).sqrt()
        return means[0], means[1], gain


@torch.no_grad()
def reestimate_batchnorm(
    reference: nn.Module,
    network: nn.Module,
    batches: Iterable[Any],
    forward: Forward,
    folded: Sequence[Folded] = (),
) -> tuple[str, ...]:
    """Give every batch normalization of ``network`` the statistics of its quantized inputs.

    Per batch, the float network is run first; then the quantized one, with each normalization's
    input mapped to the float moments on the way, so that later layers see corrected inputs. Where a
    layer absorbed its normalization, the change goes into weight and bias, so that mean and
    variance stay constants. Cost: two forward passes per batch. Changes ``network`` in place.

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
    for batch in batches:
        seen: dict[str, list[Tensor]] = defaultdict(list)
        _run(reference, norms, batch, forward, _recorded(seen))
        _run(network, norms, batch, forward, _matched(seen, moments))
    absorbed = {pair.norm for pair in folded}
    for name, entry in moments.items():
        _apply(norms[name], *entry.change(), name in absorbed)
    return tuple(moments)


def _run(
    network: nn.Module,
    names: Iterable[str],
    batch: Any,
    forward: Forward,
    look: Callable[[str, Tensor], Tensor | None],
) -> None:
    def hook(name: str) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
            replaced = look(name, args[0])
            return None if replaced is None else (replaced, *args[1:])

        return before

    handles = [network.get_submodule(n).register_forward_pre_hook(hook(n)) for n in names]
    try:
        forward(network, batch)
    finally:
        for handle in handles:
            handle.remove()


def _recorded(seen: dict[str, list[Tensor]]) -> Callable[[str, Tensor], None]:
    def look(name: str, x: Tensor) -> None:
        seen[name].append(_measure(x))

    return look


def _matched(
    seen: dict[str, list[Tensor]], moments: dict[str, _Moments]
) -> Callable[[str, Tensor], Tensor | None]:
    """Return what looks at inputs of the quantized network and maps them to the float moments."""

    def look(name: str, x: Tensor) -> Tensor | None:
        if not seen[name]:
            return None  # called more often than in the float network: nothing to compare with
        reference, quantized = seen[name].pop(0), _measure(x)
        moments[name].add(reference, quantized)
        single = _Moments()
        single.add(reference, quantized)
        before, after, gain = single.change()
        shape = (1, -1, *([1] * (x.dim() - 2)))
        mapped = (x - after.reshape(shape).to(x)) / gain.reshape(shape).to(x)
        return mapped + before.reshape(shape).to(x)

    return look


def _measure(x: Tensor) -> Tensor:
    """Return (2, channels) float64: mean and mean square over all but the channel axis."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    x = x.double()
    return torch.stack([x.mean(axes), x.square().mean(axes)])


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
