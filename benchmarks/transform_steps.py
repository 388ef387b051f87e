"""Steps of blocks by weight error, by predicted and by measured output error (paper, section on
step sizes): the same blocks, the same bit depths, no transform, no feedback.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewbits.ops.rate_distortion.bit_allocation import at_slope, block_curve, block_levels
from transform_cases import Bench, bits_saved, drift, logits, test_set

__all__ = ["compare_steps"]

_BLOCKS = 8
_IMAGES = 64  # calibration images on which steps are measured
_FACTORS = (2**-0.5, 2**-0.25, 2**0.25, 2**0.5)
_SLOPE = 1e-3


@dataclass(frozen=True)
class _Block:
    """Rows of one weight at one depth, with a step."""

    name: str
    rows: slice
    depth: int
    step: float
    offset: float

    def quantized(self, weight: Tensor) -> Tensor:
        """Return the values of these rows of ``weight`` (rows, columns)."""
        part = weight[self.rows].double()
        if self.depth == 0:
            return torch.zeros_like(part).float()
        return (block_levels(part, self.depth, self.step, self.offset) * self.step).float()


def compare_steps(bench: Bench) -> dict[str, Any]:
    """Return the error on test images for each choice of steps, also with biases corrected."""
    net = bench.folded()
    means = _mean_inputs(net, bench.calibration[0])
    x, _, _ = test_set()
    x = x[:2000]
    by_output, by_weight = _blocks(bench, net, _SLOPE)
    choices = {
        "weight error": by_weight,
        "predicted output error": by_output,
        "measured output error": list(_measured(net, by_output, bench.calibration[0])),
    }
    weights = _weights(net)
    bits = sum(b.depth * weights[b.name][b.rows].numel() for b in by_output)
    row: dict[str, Any] = {"bits_per_weight": bits / sum(w.numel() for w in weights.values())}
    before = logits(net, x)
    for suffix, shifts in (("", {}), (", bias corrected", means)):
        for choice, blocks in choices.items():
            after = logits(_with(bench, net, blocks, shifts), x)
            row[choice + suffix] = drift(before, after)
        best = row[f"measured output error{suffix}"]
        row[f"bits saved{suffix}"] = bits_saved(row[f"weight error{suffix}"], best)
    return row


def _weights(net: nn.Module) -> dict[str, Tensor]:
    """Return the matrices (rows, columns) of all layers, views of their weights."""
    kinds = (nn.Conv2d, nn.Linear)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, kinds)}
    return {name: layer.weight.detach().flatten(1) for name, layer in layers.items()}


def _blocks(bench: Bench, net: nn.Module, slope: float) -> tuple[list[_Block], list[_Block]]:
    """Return the blocks with steps by predicted output error and by weight error."""
    by_output, by_weight = [], []
    for name, weight in _weights(net).items():
        felt = bench.memory["probe"][f"{name}.weight"]
        cost = felt.rows.flatten() * felt.columns.diagonal(dim1=1, dim2=2).mean()
        size = -(-len(weight) // _BLOCKS)
        for start in range(0, len(weight), size):
            rows = slice(start, start + size)
            part, felt_rows = weight[rows].double(), cost[rows]
            output = block_curve(part, felt_rows)
            plain = block_curve(part, torch.ones_like(felt_rows))
            depth = at_slope(output, slope)
            for curve, blocks in ((output, by_output), (plain, by_weight)):
                step, offset = float(curve.step[depth]), float(curve.offset[depth])
                blocks.append(_Block(name, rows, depth, step, offset))
    return by_output, by_weight


def _measured(net: nn.Module, blocks: list[_Block], batch: Tensor) -> Iterator[_Block]:
    """Yield each block with the step that changes the output least while all else is float."""
    x = batch[:_IMAGES]
    before = logits(net, x)
    network = copy.deepcopy(net)
    weights = _weights(network)
    for block in blocks:
        weight = weights[block.name]
        kept = weight[block.rows].clone()
        least, best = math.inf, block
        for tried in (block, *(replace(block, step=block.step * f) for f in _FACTORS)):
            weight[block.rows] = tried.quantized(_weights(net)[block.name])
            error = drift(before, logits(network, x)) if block.depth else math.inf
            if error < least:
                least, best = error, tried
        weight[block.rows] = kept
        yield best


def _with(
    bench: Bench, net: nn.Module, blocks: list[_Block], means: dict[str, Tensor]
) -> nn.Module:
    """Return the network with all blocks quantized, and the mean error in the biases."""
    network = copy.deepcopy(net)
    changed, exact = _weights(network), _weights(net)
    for block in blocks:
        changed[block.name][block.rows] = block.quantized(exact[block.name])
    for name, mean in means.items():
        bench.bias_of(network, name).add_((exact[name] - changed[name]) @ mean)
    return network


@torch.no_grad()
def _mean_inputs(net: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Return the mean input (columns,) of every layer."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(layer: Any, inputs: tuple[Tensor]) -> None:
            x = inputs[0]
            if isinstance(layer, nn.Conv2d):
                place = {"padding": layer.padding, "stride": layer.stride}
                x = F.unfold(x, layer.kernel_size, **place).transpose(1, 2)
            found[name] = x.flatten(0, -2).mean(0)

        return hook

    handles = [net.get_submodule(n).register_forward_pre_hook(keep(n)) for n in _weights(net)]
    net(batch)
    for handle in handles:
        handle.remove()
    return found
