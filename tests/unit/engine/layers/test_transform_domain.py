"""Pairs of layers against the layers that they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewbits
from fewbits.engine.layers.transform_domain import count_multiplications
from fewbits.methods import Transform

CASES = {
    "conv": (nn.Conv2d(6, 8, 3), (40, 6, 7, 7)),
    "stride and padding": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (40, 6, 7, 7)),
    "reflected": (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (40, 6, 7, 7)),
    "same, dilated": (nn.Conv2d(6, 8, 3, padding="same", dilation=2), (40, 6, 7, 7)),
    "no bias": (nn.Conv2d(6, 8, (1, 3), bias=False), (40, 6, 7, 7)),
    "grouped": (nn.Conv2d(6, 8, 3, padding=1, groups=2), (40, 6, 7, 7)),
    "1x1": (nn.Conv2d(6, 8, 1, stride=2, padding=1), (40, 6, 7, 7)),
    "one channel out": (nn.Conv2d(6, 1, 3), (40, 6, 7, 7)),
    "conv1d": (nn.Conv1d(6, 8, 5, stride=3), (40, 6, 20)),
    "conv3d": (nn.Conv3d(4, 5, 2), (40, 4, 4, 4, 4)),
    "dense": (nn.Linear(12, 9), (200, 12)),
    "dense over places": (nn.Linear(12, 9), (40, 5, 12)),
}


def inputs(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def of_low_rank(layer, side):
    """The layer with a weight of rank 2 in the channels of ``side``: vectors can be dropped."""
    layer, g = copy.deepcopy(layer), torch.Generator().manual_seed(0)
    weight = layer.weight.detach()
    axis = 1 if side == "row" else 0
    moved = weight.movedim(axis, 0)
    groups = getattr(layer, "groups", 1) if side == "column" else 1
    mix = torch.randn(len(moved) // groups, 2, generator=g).repeat(groups, 1)
    low = (mix @ torch.randn(2, moved[0].numel(), generator=g)).reshape(moved.shape)
    layer.weight = nn.Parameter(low.movedim(0, axis).contiguous())
    return layer


@pytest.mark.parametrize("slope", [pytest.param(1e-7, marks=pytest.mark.slow), 3.0])
@pytest.mark.parametrize("side", ["row", "column"])
@pytest.mark.parametrize("case", CASES)
def test_a_pair_is_the_layer(case, side, slope, tmp_path):
    layer, shape = CASES[case]
    net = nn.Sequential(of_low_rank(layer, side), nn.Flatten()).eval()
    x = inputs(shape)
    method = Transform(slope=slope, side=side)
    coded = fewbits.compress(net, method, calibration=list(x.split(10)))
    coded.save(tmp_path / "net.fewbits")
    plain = fewbits.load(tmp_path / "net.fewbits", into=copy.deepcopy(net))
    paired = fewbits.load(tmp_path / "net.fewbits", into=copy.deepcopy(net), transform_domain=True)
    with torch.no_grad():
        expected, found = plain(x), paired(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1)
    split = isinstance(paired[0], nn.Sequential)
    assert split == (coded.info["0.weight"]["vectors"] > 0)
    assert split or (case == "one channel out" and side == "column")
    channels = net[0].weight.shape[0 if side == "column" else 1]
    if split and slope == 3.0 and channels > 3:
        assert coded.info["0.weight"]["vectors"] < channels


def test_multiplications_are_counted():
    net = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Flatten(),
                        nn.Linear(6 * 9, 5))  # fmt: skip
    found = count_multiplications(net, torch.zeros(1, 4, 6, 6), lambda m, x: m(x))
    assert found.layers == {"0": 9 * 6 * 2 * 9, "2": 54 * 5}
    assert found.total == 9 * 6 * 2 * 9 + 54 * 5


def test_layers_that_do_more_than_their_class_stay(tmp_path):
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    hooked = nn.Linear(8, 8)
    tied = nn.Linear(8, 8)
    net = nn.Sequential(Own(8, 8), hooked, tied, tied, nn.Linear(8, 8)).eval()
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    coded = fewbits.compress(net, Transform(slope=1e-6, side="row"), calibration=[x])
    coded.save(tmp_path / "net.fewbits")
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    expected = fewbits.load(tmp_path / "net.fewbits", into=copy.deepcopy(net))(x)
    paired = fewbits.load(tmp_path / "net.fewbits", into=net, transform_domain=True)
    assert [isinstance(layer, nn.Sequential) for layer in paired] == [False] * 4 + [True]
    assert torch.allclose(paired(x), expected, atol=1e-5)


def test_a_state_dict_has_no_layers_to_pair(tmp_path):
    with pytest.raises(fewbits.ConfigError, match="transform_domain must be False without into="):
        fewbits.load(tmp_path / "net.fewbits", transform_domain=True)
