from __future__ import annotations

import torch
from torch import nn

from fewbits.engine.batches import call_model
from fewbits.engine.fold import fold_batchnorm


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
