from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewbits.engine.batchnorm.fold import fold_batchnorm
from fewbits.engine.network.batches import call_model


def _shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
                module.weight.add_(module.weight.sign())  # far from 0, where eps would show
                module.running_var.copy_(torch.rand(module.running_var.shape) + 0.1)
    return net.eval()


class Residual(nn.Module):
    """Two foldable pairs, and one whose layer also feeds a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.ConvTranspose2d(8, 6, 2, 2, groups=2), nn.BatchNorm2d(6)
        self.fc, self.bn4 = nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        y = self.conv2(x)
        x = self.bn2(y) + y
        x = self.bn3(self.conv3(x)).relu().mean((2, 3))
        return self.bn4(self.fc(x))


@torch.no_grad()
def test_folding_keeps_the_function_and_the_names():
    torch.manual_seed(0)
    net, x = _shaken(Residual()), torch.randn(4, 3, 6, 6)
    names, before = list(net.state_dict()), net(x)
    folded = fold_batchnorm(net, x, call_model)
    assert list(net.state_dict()) == names
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)
    assert [pair.norm for pair in folded] == ["bn1", "bn3", "bn4"]  # conv2 feeds the sum too
    assert torch.equal(net.bn1.weight, torch.ones(8))
    assert torch.equal(net.bn1.running_mean, torch.zeros(8))
    assert torch.equal(net.conv1.bias, torch.zeros(8))
    assert bool(net.bn1.bias.all())
    assert not torch.equal(net.bn2.weight, torch.ones(8))


@torch.no_grad()
def test_a_shared_layer_is_not_folded():
    torch.manual_seed(0)
    layer = nn.Linear(5, 5)
    net = _shaken(nn.Sequential(layer, nn.BatchNorm1d(5), layer, nn.BatchNorm1d(5)))
    before = net(torch.ones(3, 5))
    assert fold_batchnorm(net, torch.ones(3, 5), call_model) == ()
    assert torch.equal(net(torch.ones(3, 5)), before)


class Wrapped(nn.Module):
    """A network of another output type."""

    def __init__(self, inner: nn.Module, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


@dataclass
class Answer:
    logits: Tensor
    loss: None = None


@dataclass(slots=True)
class SlottedAnswer:
    logits: Tensor


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def _holder(x: Tensor) -> Any:
    answer = SimpleNamespace(logits=x)
    answer.itself = answer
    return answer


OUTPUTS = {
    "dataclass": Answer,
    "object": _holder,
    "mapping": lambda x: MappingProxyType({"logits": x}),
    "nested": lambda x: [None, {"a": (Answer(x), 3)}],
    "sparse": lambda x: x.to_sparse(),
    "slotted dataclass": SlottedAnswer,
    "masked": lambda x: torch.cat([x, torch.full_like(x, -torch.inf)]),
    "far off": lambda x: torch.cat([x, torch.full_like(x, -1e9)]),
    "complex": lambda x: torch.complex(x, x),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", OUTPUTS)
def test_pairs_are_verified_in_outputs_of_every_kind(kind):
    torch.manual_seed(0)
    net, x = _shaken(Residual()), torch.randn(4, 3, 6, 6)
    before = net(x)
    folded = fold_batchnorm(Wrapped(net, OUTPUTS[kind]), x, call_model)
    assert [pair.norm for pair in folded] == ["inner.bn1", "inner.bn3", "inner.bn4"]
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("wrap", [lambda x: None, lambda x: x.argmax(-1), Slotted])
def test_nothing_is_folded_where_no_output_can_tell(wrap):
    torch.manual_seed(0)
    net, x = _shaken(Residual()), torch.randn(4, 3, 6, 6)
    before = net(x)
    assert fold_batchnorm(Wrapped(net, wrap), x, call_model) == ()
    assert torch.equal(net(x), before)


@torch.no_grad()
def test_an_output_that_is_a_buffer_of_the_network_is_compared_all_the_same():
    class Reusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _shaken(Residual())
            self.register_buffer("last", torch.zeros(4, 5))

        def forward(self, x):
            return self.last.copy_(self.net(x))

    torch.manual_seed(0)
    net = Reusing().eval()
    folded = fold_batchnorm(net, torch.randn(4, 3, 6, 6), call_model)
    assert "net.bn2" not in [pair.norm for pair in folded]


@torch.no_grad()
def test_an_output_whose_shape_changes_folds_nothing():
    torch.manual_seed(0)
    net = _shaken(Residual())
    calls = []

    def forward(model, batch):
        calls.append(1)
        return model(batch)[: len(calls)]

    assert fold_batchnorm(net, torch.randn(4, 3, 6, 6), forward) == ()


@torch.no_grad()
def test_layers_that_are_kept_are_not_folded():
    torch.manual_seed(0)
    net, x = _shaken(Residual()), torch.randn(4, 3, 6, 6)
    before = copy.deepcopy(net.conv1.state_dict())
    folded = fold_batchnorm(net, x, call_model, kept=("conv1", "fc"))
    assert [pair.norm for pair in folded] == ["bn3"]
    assert all(torch.equal(net.conv1.state_dict()[k], v) for k, v in before.items())


class Swapped(nn.Module):
    """A layer whose outputs are not the channels of the normalization behind it."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        self.layer, self.norm = layer, nn.BatchNorm1d(channels)

    def forward(self, x):
        return self.norm(self.layer(x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(3, 7), torch.randn(4, 5, 3)),
        (nn.Linear(3, 5), torch.randn(4, 5, 3)),
        (nn.Embedding(9, 7), torch.arange(20).reshape(4, 5) % 9),
        (nn.Embedding(5, 5), torch.arange(4)),
        (nn.Conv2d(3, 4, 1), torch.randn(3, 5, 5)),
        (nn.Conv2d(3, 5, 1), torch.randn(3, 5, 5)),
        (nn.RNNCell(3, 5), torch.randn(4, 3)),
    ],
)
def test_a_norm_over_another_axis_is_no_pair(layer, x):
    net = _shaken(Swapped(layer, 5))
    before = net(x)
    assert fold_batchnorm(net, x, call_model) == ()
    assert torch.equal(net(x), before)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_scripted_parts_are_passed_over():
    torch.manual_seed(0)
    scripted = torch.jit.script(nn.Sequential(nn.Linear(5, 5), nn.ReLU()))
    net = _shaken(nn.Sequential(scripted, nn.Linear(5, 4), nn.BatchNorm1d(4)))
    folded = fold_batchnorm(net, torch.randn(6, 5), call_model)
    assert [pair.layer for pair in folded] == ["1"]


class Awkward(nn.Module):
    """Writes into its input, always drops, and calls its normalization by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(5, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        x.mul_(2)
        return functional.dropout(self.bn(input=self.fc(x)), 0.5, training=True)


@torch.no_grad()
def test_a_network_that_draws_and_writes_into_its_input_is_folded():
    torch.manual_seed(0)
    net, x = _shaken(Awkward()), torch.randn(8, 5)
    before, state = x.clone(), torch.get_rng_state()
    assert [pair.layer for pair in fold_batchnorm(net, x, call_model)] == ["fc"]
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
