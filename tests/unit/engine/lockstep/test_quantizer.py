from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fewbits.engine.layers.layer import LayerMatrix, QuantizedMatrix
from fewbits.engine.layers.targets import survey
from fewbits.engine.lockstep.lockstep import run_lockstep
from fewbits.engine.lockstep.quantizer import LayerQuantizer, Work, quantize_alone
from fewbits.engine.network.batches import call_model
from fewbits.methods import GPFQ, Nearest


class Looped(nn.Module):
    """One layer called several times; ``inplace`` changes nothing but where the sum is written."""

    def __init__(self, inplace: bool, calls: int = 3) -> None:
        super().__init__()
        self.l, self.inplace, self.calls = nn.Linear(64, 64), inplace, calls

    def forward(self, x):
        for _ in range(self.calls):
            if self.inplace:
                x += self.l(x)
            else:
                x = x + self.l(x)
        return x


def quantized(network: nn.Module, batches: list[Any], encode: Any, **options: Any) -> nn.Module:
    changed = copy.deepcopy(network)
    work = {target.module: [Work(target, encode)] for target in survey(network).targets}
    observer = LayerQuantizer(changed, work, len(batches), 0, **options)
    run_lockstep(network, changed, list(work), batches, call_model, observer)
    assert set(observer.results) == {f"{name}.weight".lstrip(".") for name in work}
    return changed


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rows_that_are_kept_do_not_change_with_the_network():
    answers = []
    for inplace in (False, True):
        torch.manual_seed(0)
        net = Looped(inplace).eval()
        answers.append(quantized(net, [numbers(8, 64)], GPFQ(bits=3).encode).l.weight)
    assert torch.equal(*answers)


@pytest.mark.parametrize(("budget", "calls"), [(64, 3), (64, 1), (7, 5), (1, 2)])
def test_the_row_budget_holds_however_often_a_layer_is_called(budget, calls):
    seen: list[int] = []

    def encode(layer: LayerMatrix) -> QuantizedMatrix:
        seen.append(layer.statistics.rows)
        return Nearest(bits=4).encode(layer)

    torch.manual_seed(0)
    net = Looped(inplace=False, calls=calls).eval()
    quantized(net, [numbers(100, 64, seed=i) for i in range(4)], encode, rows=budget)
    assert seen == [budget]


def test_autocast_of_the_caller_does_not_reach_the_methods():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    target = survey(net).targets[0]
    products = []

    def encode(layer: LayerMatrix) -> QuantizedMatrix:
        if layer.statistics is not None:
            products.append(layer.statistics.moments()[0].dtype)
        products.append((layer.weight @ layer.weight.mT).dtype)
        return Nearest(bits=4).encode(layer)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized(net, [numbers(40, 6)], encode)
        quantize_alone(copy.deepcopy(net), Work(target, encode), 0)
        quantized(net, [numbers(40, 6)], GPFQ(bits=4).encode)
    assert set(products) == {torch.float32}


@pytest.mark.parametrize("elements", [0, 2, 6])
def test_methods_get_aligned_memory_whatever_a_checkpoint_has(elements):
    """Products round differently in memory of another alignment."""
    net = nn.Linear(40, 40)
    memory = torch.empty(net.weight.numel() + elements)[elements:].view_as(net.weight)
    net.weight.data = memory.copy_(net.weight.data)
    assert net.weight.data_ptr() % 64 == 4 * elements
    seen: list[LayerMatrix] = []

    def encode(layer: LayerMatrix) -> QuantizedMatrix:
        seen.append(layer)
        return Nearest(bits=4).encode(layer)

    quantize_alone(net, Work(survey(net).targets[0], encode), 0)
    assert seen[0].weight.data_ptr() % 64 == 0
