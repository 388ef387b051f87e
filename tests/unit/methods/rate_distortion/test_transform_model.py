"""The transform's model of the output error against the output: acceptance tests T1, T5 and T6.

The model is the dossier's: no feedback, no bias correction, statistics of this test's own (one
gradient for each sample and probe), steps of ``ops.allocate``.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fewbits.ops.rate_distortion.bit_allocation import block_curve
from fewbits.ops.transforms import SIDES, elt, fold, klt, unfold

PROBES = 4
BLOCKS = 8
DRAWS = 32  # of the rounding of one item


def fused(net):
    for k in (1, 2, 3):
        conv, norm = getattr(net, f"conv{k}"), getattr(net, f"bn{k}")
        setattr(net, f"conv{k}", fuse_conv_bn_eval(conv, norm))
        setattr(net, f"bn{k}", nn.Identity())
    return net


def gradients(net, images):
    """Per weight (probes * samples, *shape): of random signs of the centred logits."""
    weights = {n: p.detach() for n, p in net.named_parameters() if p.dim() > 1}

    def aim(weights, image, signs):
        logits = functional_call(net, weights, image[None])[0]
        return (logits - logits.mean()) @ signs

    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(PROBES):
        signs = 2.0 * torch.randint(0, 2, (len(images), 10), generator=g) - 1
        found.append(vmap(grad(aim), (None, 0, 0))(weights, images, signs))
    return {name: torch.cat([part[name] for part in found]) for name in weights}


class Layer:
    """One weight in a basis: S, T, and what a squared error of their elements costs."""

    def __init__(self, weight, gradient_of, side, kind):
        self.shape = (1, len(weight), weight[0].numel())
        self.kernel = weight[0, 0].numel() if weight.dim() > 2 else 1
        self.side = side
        self.dims = weight.shape
        matrix = self.unfold(weight)
        grads = torch.stack([self.unfold(g) for g in gradient_of])
        metric = torch.einsum("snq,smq->nm", grads, grads) / len(grads)
        moments = matrix @ matrix.mT / matrix.shape[1]
        basis = klt(moments) if kind == "klt" else elt(moments, metric)
        self.synthesis, self.values = basis.synthesis, basis.analysis @ matrix
        self.vectors = ((self.synthesis.mT @ metric) * self.synthesis.mT).sum(1) / matrix.shape[1]
        towards = grads @ self.values.mT
        self.columns = towards.square().sum((0, 1)) / len(grads) / len(matrix)

    def unfold(self, tensor):
        return unfold(tensor.double().reshape(self.shape), self.kernel, self.side)

    def weight(self, synthesis=None, values=None):
        synthesis = self.synthesis if synthesis is None else synthesis
        matrix = synthesis @ (self.values if values is None else values)
        return fold(matrix, self.shape, self.kernel, self.side).reshape(self.dims)


class Item:
    """One block of rows of T, or of columns of S, at the best step of so many bits.

    Rounding is dithered, which makes the model's assumption true: errors have mean 0 and do not go
    together. A block of S has as few as 32 values, and what one rounding of them does is a draw.
    """

    def __init__(self, layer, part, place, bits):
        rows = layer.values if part == "T" else layer.synthesis.mT
        cost = layer.vectors if part == "T" else layer.columns
        self.rows, self.cost, self.part, self.place = rows[place], cost[place], part, place
        self.step = float(block_curve(self.rows, self.cost).step[bits])

    def draw(self, generator):
        """Return the block rounded, and the error of the output that this should make."""
        dither = torch.rand(self.rows.shape, generator=generator, dtype=torch.float64)
        levels = self.step * ((self.rows / self.step + dither).round() - dither)
        return levels, float((levels - self.rows).square().sum(1) @ self.cost)

    def put(self, levels, synthesis, values):
        if self.part == "T":
            values[self.place] = levels
        else:
            synthesis[:, self.place] = levels.mT


def items(layer, part, bits):
    """Return the eight blocks, but for vectors near zero or that nothing sees."""
    size = -(-len(layer.values) // BLOCKS)
    places = [slice(start, start + size) for start in range(0, len(layer.values), size)]
    found = [Item(layer, part, place, bits) for place in places]
    worth = [float(item.rows.square().sum(1) @ item.cost) for item in found]
    return [item for item, w in zip(found, worth, strict=True) if w > 1e-4 * max(worth)]


class Model:
    """The network, and its layers by (side, kind) and the names of their weights."""

    def __init__(self, network, images):
        self.network, self.images = network, images
        gradient_of, weights = gradients(network, images), dict(network.named_parameters())
        self.layers = {}
        for side in SIDES:
            mixed = [n for n in gradient_of if weights[n].shape[1 if side == "row" else 0] > 1]
            for kind in ("klt", "elt"):
                made = {n: Layer(weights[n].detach(), gradient_of[n], side, kind) for n in mixed}
                self.layers[side, kind] = made
        with torch.no_grad():
            self.before = network(images)

    def drift(self, weights):
        """Mean squared change of the centred logits where ``weights`` replace the network's."""
        with torch.no_grad():
            changed = {name: weight.float() for name, weight in weights.items()}
            gap = functional_call(self.network, changed, self.images) - self.before
        gap -= gap.mean(1, keepdim=True)
        return float(gap.square().sum(1).mean())


@pytest.fixture(scope="module")
def model(_trained, digits):
    return Model(fused(copy.deepcopy(_trained)), digits[0][:200])


CASES = pytest.mark.parametrize("kind", ["klt", "elt"])
BOTH = pytest.mark.parametrize("side", SIDES)


@BOTH
@CASES
def test_t1_weights_made_of_basis_and_coefficients_are_the_network(model, digits, side, kind):
    wide, x = copy.deepcopy(model.network).double(), digits[2][:100].double()
    made = {name: layer.weight() for name, layer in model.layers[side, kind].items()}
    with torch.no_grad():
        wanted, found = wide(x), functional_call(wide, made, x)
    assert (found - wanted).abs().max() < 1e-6 * wanted.abs().max()


def changed(layer, draws):
    """The weight with some items drawn; ``draws`` are pairs (item, levels)."""
    synthesis, values = layer.synthesis.clone(), layer.values.clone()
    for item, levels in draws:
        item.put(levels, synthesis, values)
    return layer.weight(synthesis, values)


@BOTH
@CASES
@pytest.mark.slow
@pytest.mark.parametrize("part", ["T", "S"])
def test_t5_each_item_alone_changes_the_output_as_foretold(model, side, kind, part):
    generator, ratios = torch.Generator().manual_seed(0), {}
    for name, layer in model.layers[side, kind].items():
        for place, item in enumerate(items(layer, part, 5)):
            measured = foretold = 0.0
            for _ in range(DRAWS):
                levels, told = item.draw(generator)
                measured += model.drift({name: changed(layer, [(item, levels)])})
                foretold += told
            ratios[name, place] = measured / foretold
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios
    assert 0.8 < float(np.median(list(ratios.values()))) < 1.2, ratios


@BOTH
@CASES
@pytest.mark.slow
def test_t6_items_together_change_it_by_the_sum(model, side, kind):
    generator, alone, joint = torch.Generator().manual_seed(0), 0.0, 0.0
    chosen = {
        name: [item for part in ("T", "S") for item in items(layer, part, 4)]
        for name, layer in model.layers[side, kind].items()
    }
    for turn in range(20):  # four draws of all items at once are too noisy
        together = {}
        for name, layer in model.layers[side, kind].items():
            draws = [(item, item.draw(generator)[0]) for item in chosen[name]]
            if turn < 4:
                alone += sum(model.drift({name: changed(layer, [draw])}) for draw in draws) / 4
            together[name] = changed(layer, draws)
        joint += model.drift(together) / 20
    assert 0.7 < joint / alone < 1.5
