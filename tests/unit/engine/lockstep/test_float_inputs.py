from __future__ import annotations

import torch
from torch import nn

from fewbits.engine.layers.targets import survey
from fewbits.engine.lockstep.float_inputs import float_inputs
from fewbits.engine.network.batches import call_model


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def states(self, tokens):
        return torch.tanh(self.mix(self.embed(tokens)))

    def forward(self, tokens):
        return self.head(self.states(tokens))


def tied():
    torch.manual_seed(0)
    return Tied().eval()


BATCHES = [torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[6, 6, 1]])]


def test_a_tied_embedding_has_a_layer_whose_inputs_can_be_seen():
    target = survey(tied()).targets[0]
    assert target.name == "embed.weight"
    assert target.looked_up
    assert target.seen_at[0] == "head"
    assert not survey(tied()).targets[1].looked_up


def test_moments_are_those_of_the_inputs_of_the_head():
    network = tied()
    targets = dict.fromkeys(survey(network).targets[:1])
    found = float_inputs(network, targets, BATCHES, call_model)["embed.weight"]
    rows = torch.cat([network.states(batch).flatten(0, 1) for batch in BATCHES]).detach()
    assert found.rows == 9
    assert torch.allclose(found.moments()[0][0], rows.T @ rows, atol=1e-5)
    assert found.moments()[0] is found.moments()[1]


def test_padding_is_left_out():
    network = tied()
    masks = [[torch.tensor([[True, False, False], [True, True, False]])], [torch.ones(1, 3) > 0]]
    targets = dict.fromkeys(survey(network).targets[:1])
    found = float_inputs(network, targets, BATCHES, call_model, masks=masks)
    assert found["embed.weight"].rows == 6


def test_an_untied_embedding_is_left_out():
    network = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    targets = dict.fromkeys(survey(network).targets[:1])
    assert float_inputs(network, targets, [torch.tensor([[0, 1]])], call_model) == {}
