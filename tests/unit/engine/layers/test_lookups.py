"""Sensitivity of embeddings against gradients of every output; of tied ones, of both uses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewbits.engine.layers.layer import Sensitivity
from fewbits.engine.layers.lookups import LookupSums, joined
from fewbits.engine.layers.targets import survey
from fewbits.engine.network.batches import call_model
from fewbits.engine.sensitivity import probe


class Reader(nn.Module):
    """Embeds tokens, mixes neighbours, and predicts; the head may be the embedding itself."""

    def __init__(self, tied):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        states = self.embed(tokens)
        return self.head(torch.tanh(self.mix(states) + states.roll(1, 1)))


def reader(tied):
    torch.manual_seed(0)
    return Reader(tied).eval()


TOKENS = torch.randint(0, 9, (6, 5), generator=torch.Generator().manual_seed(1))


def exact_energy(network, name, tokens):
    """Return (rows,) the expected squared change of a token's output per unit of each row."""
    total = 0
    for sample in tokens:
        output = network(sample[None])[0]
        for place in range(output.shape[0]):
            for logit in output[place] - output[place].mean():
                (g,) = torch.autograd.grad(
                    logit, network.get_parameter(name), retain_graph=True, allow_unused=True
                )
                total = total + g.square().sum(1) / tokens.numel()
    return total


@pytest.mark.parametrize("tied", [False, True])
def test_probes_find_how_much_each_row_of_an_embedding_matters(tied):
    network = reader(tied)
    targets = survey(network).targets
    found = probe(network, targets, [TOKENS], call_model, metric="logits", probes=600).layers
    rows = found["embed.weight"].rows[0]
    size = found["embed.weight"].columns[0].diagonal().sum()
    wanted = exact_energy(network, "embed.weight", TOKENS)
    used = TOKENS.unique()
    total = float(rows[used].sum() * size)
    assert total == pytest.approx(float(wanted[used].sum()), rel=0.15 if not tied else 0.4)
    if not tied:  # with the head, gradients of the two uses also meet
        shares = (rows * size)[used] / wanted[used].float()
        assert shares.min() > 0.5
        assert shares.max() < 2


def test_rows_that_were_never_used_count_as_rare_ones():
    sums = LookupSums(8, 3)
    places = torch.tensor([[0, 0, 0, 0, 1, 2]])
    sums.add(places, torch.ones(1, 6, 3), 1)
    found = sums.finish(1)
    assert found.rows.shape == (1, 8)
    assert found.rows[0, 0] > found.rows[0, 1] > found.rows[0, 5] > 0
    assert found.columns[0].diagonal().sum() == pytest.approx(3)
    assert found.outputs is None


def test_gradients_of_a_row_add_up_within_a_sample_and_not_across():
    one, two = LookupSums(4, 2), LookupSums(4, 2)
    gradients = torch.ones(2, 1, 2)
    one.add(torch.tensor([[3, 3]]), gradients.reshape(1, 2, 2), 1)
    two.add(torch.tensor([[3], [3]]), gradients, 2)
    assert float(one._squares[3]) == 8
    assert float(two._squares[3]) == 4


def test_padding_without_gradients_is_not_a_use():
    sums = LookupSums(4, 2)
    gradients = torch.zeros(1, 3, 2)
    gradients[0, 0] = 1
    sums.add(torch.tensor([[1, 0, 0]]), gradients, 1)
    assert sums._counts.tolist() == [0, 1, 0, 0]


def test_two_uses_of_a_weight_keep_the_total_of_every_row():
    generator = torch.Generator().manual_seed(3)
    parts = []
    for size in (1.0, 30.0):
        half = torch.randn(4, 4, generator=generator)
        rows = torch.rand(1, 5, generator=generator, dtype=torch.float64) + 0.1
        parts.append(Sensitivity(rows, size * (half @ half.T)[None], None, 2))
    both = joined(*parts)
    error = torch.randn(5, 4, generator=generator)

    def energy(one):
        return one.rows[0] * one.columns[0].diagonal().sum()

    assert torch.allclose(energy(both), sum(map(energy, parts)), rtol=1e-5)
    assert torch.allclose(both.columns, both.columns.mT)
    assert float(((error @ both.columns[0]) * error).sum()) > 0
