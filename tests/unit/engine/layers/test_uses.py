"""How often a sample uses each weight, against counts by hand."""

from __future__ import annotations

import torch
from torch import nn

from fewbits.coded import Use
from fewbits.engine.layers.uses import count_uses
from fewbits.engine.network.batches import call_model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.conv = nn.Conv1d(6, 4, 3, stride=2, groups=2)
        self.up = nn.ConvTranspose1d(4, 2, 2, stride=2)
        self.twice = nn.Linear(2, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.table(x)
        x = self.attention(x, x, x)[0]
        x = self.up(self.conv(x.mT)).mT
        return self.twice(self.twice(x)).mean(1)


def test_positions_are_those_of_one_sample():
    net = Net().train()
    found = count_uses(net, torch.randint(0, 7, (3, 9)), 3, call_model)
    assert found == {
        "attention.in_proj_weight": Use(9, 9, 3),
        "attention.out_proj.weight": Use(9, 9),
        "conv.weight": Use(4, 9, 2),
        "up.weight": Use(8, 4),
        "twice.weight": Use(16, 16),
    }
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
