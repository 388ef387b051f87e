from __future__ import annotations

import pytest
import torch
from torch import nn

from fewbits.engine.batches import call_model
from fewbits.engine.fold import fold_batchnorm, reestimate_batchnorm
from fewbits.errors import ConfigError


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
    assert not torch.equal(net.bn2.weight, torch.ones(8))


@torch.no_grad()
def test_a_shared_layer_is_not_folded():
    torch.manual_seed(0)
    layer = nn.Linear(5, 5)
    net = _shaken(nn.Sequential(layer, nn.BatchNorm1d(5), layer, nn.BatchNorm1d(5)))
    before = net(torch.ones(3, 5))
    assert fold_batchnorm(net, torch.ones(3, 5), call_model) == ()
    assert torch.equal(net(torch.ones(3, 5)), before)


@torch.no_grad()
def test_reestimation_measures_what_the_network_now_sees():
    torch.manual_seed(0)
    net = _shaken(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    batches = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    reestimate_batchnorm(net, batches, call_model)
    seen = torch.cat([net[0](batch) for batch in batches])
    torch.testing.assert_close(net[1].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net[1].running_var, seen.var((0, 2, 3)), rtol=1e-2, atol=1e-3)
    assert not net.training
    assert net[1].momentum == 0.1
    assert int(net[1].num_batches_tracked) == 0


@torch.no_grad()
def test_reestimation_after_folding_is_reestimation_without_it():
    torch.manual_seed(0)
    plain, batches = _shaken(Residual()), [torch.randn(32, 3, 6, 6) for _ in range(3)]
    folded_net = Residual()
    folded_net.load_state_dict(plain.state_dict())
    folded = fold_batchnorm(folded_net.eval(), batches[0], call_model)
    for net in (plain, folded_net):  # the same relative damage to both
        net.conv1.weight.mul_(1.3)
        net.conv3.weight.mul_(0.7)
    reestimate_batchnorm(plain, batches, call_model)
    reestimate_batchnorm(folded_net, batches, call_model, folded)
    torch.testing.assert_close(folded_net(batches[0]), plain(batches[0]), rtol=2e-3, atol=2e-3)
    assert torch.equal(folded_net.bn1.running_mean, torch.zeros(8))


def test_reestimation_without_batchnorm_is_an_error():
    with pytest.raises(ConfigError, match="no batch normalization"):
        reestimate_batchnorm(nn.Linear(2, 2), [torch.zeros(1, 2)], call_model)
