"""What training made of a compressed network is kept where it is better, and both are told."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import fewbits
from fewbits.recipe.training_config import Training
from fewbits.sources import ArraySplit, load_data
from fewbits.training.against_start import AgainstStart
from fewbits.training.from_recipe import train
from fewbits.training.loop.loop import Fitted


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def fitted(score, reference=0.95):
    return Fitted(6, 60, 6, score, reference, (), 1.0)


@pytest.fixture(scope="module")
def sizes():
    """The same network with fewer and with more bytes."""
    small, large = (fewbits.compress(network(), fewbits.Nearest(bits=b)) for b in (2, 4))
    return {"small": small, "large": large}


def chosen(sizes, start, end, scores, max_drop=None):
    against = AgainstStart(sizes[start], scores[0], max_drop=max_drop)
    net = network()
    coded, told = against.chosen(sizes[end], fitted(scores[1]), net)
    values = coded.state_dict()
    if told.epoch == 0:
        assert coded.data == sizes[start].data
        assert all(torch.equal(net.state_dict()[name], value) for name, value in values.items())
        assert "made nothing better" in coded.notes[-1]
        assert told.score == scores[0]
    else:
        assert coded.contents is sizes[end].contents
    return coded, told.epoch


@pytest.mark.parametrize(
    ("start", "end", "scores", "epoch"),
    [
        ("small", "large", (0.90, 0.89), 0),  # worse in both
        ("small", "large", (0.90, 0.90), 0),
        ("small", "large", (0.90, 0.91), 6),  # more accurate
        ("large", "small", (0.90, 0.90), 6),  # smaller
        ("large", "small", (0.90, 0.85), 6),  # 6 % of the accuracy, about half of the bytes
        ("large", "small", (0.90, 0.10), 0),  # ruined
        ("small", "small", (0.90, 0.89), 0),
        ("small", "small", (0.90, 0.90), 6),
    ],
)
def test_the_better_one_is_kept(sizes, start, end, scores, epoch):
    coded, found = chosen(sizes, start, end, scores)
    assert found == epoch
    assert f"{scores[0]:.4f} before, {scores[1]:.4f} after" in coded.notes[-1]


@pytest.mark.parametrize(
    ("scores", "epoch"),
    [((0.94, 0.93), 6), ((0.94, 0.90), 0), ((0.80, 0.70), 6), ((0.80, 0.93), 6)],
)
def test_a_limit_on_the_drop_decides_first(sizes, scores, epoch):
    assert chosen(sizes, "large", "small", scores, max_drop=0.02)[1] == epoch


@pytest.mark.parametrize(
    ("start", "end", "losses", "epoch"),
    [
        ("small", "large", (0.30, 0.31), 0),
        ("small", "large", (0.30, 0.29), 0),
        ("small", "large", (3.30, 0.30), 6),  # more bytes, and worth them
        ("large", "small", (0.30, 0.40), 6),  # about half of the bytes are worth 0.5
        ("large", "small", (0.30, 1.30), 0),
        ("small", "small", (0.30, 0.30), 6),
    ],
)
def test_the_loss_decides_where_it_is_known(sizes, start, end, losses, epoch):
    against = AgainstStart(sizes[start], 0.9, losses[0], measure=lambda _: losses[1])
    coded, told = against.chosen(sizes[end], fitted(0.8), network())
    assert told.epoch == epoch
    assert f"loss {losses[0]:.4f} before, {losses[1]:.4f} after" in coded.notes[-1]


def test_without_held_out_data_a_larger_file_is_told_of(sizes):
    coded, epoch = chosen(sizes, "small", "large", (math.nan, math.nan))
    assert epoch == 6
    assert "nothing tells whether" in coded.notes[-1]
    coded, epoch = chosen(sizes, "large", "small", (math.nan, math.nan))
    assert coded.notes == sizes["small"].notes


def test_a_training_that_ruins_the_network_returns_its_start(tmp_path):
    net, data = network(), load_data("digits")
    fewbits.compress(net, fewbits.Nearest(bits=3)).save(tmp_path / "start.fewbits")
    start = fewbits.CodedModel.load(tmp_path / "start.fewbits")
    recipe = fewbits.Recipe.of(fewbits.HEMP())
    rate = replace(recipe, train=Training(epochs=1, learning_rate=1e-9))
    ruin = replace(rate, rules=(fewbits.Rule("*", fewbits.HEMP(slope=1e9)),))
    ruin = replace(ruin, train=Training(epochs=1, learning_rate=1.0, clip=1.0))
    result = train(net, ruin, data, start=tmp_path / "start.fewbits", judge=_likeness(start))
    assert result.fitted.epoch == 0
    assert result.coded.data == start.data
    result = train(network(), rate, data, start=start, judge=_likeness(start))
    assert result.fitted.epoch == 1
    assert "tensors of" in result.coded.notes[-1]


def test_a_start_at_floats_says_that_smallest_is_smaller():
    data = load_data("digits")
    for method, told in ((fewbits.HEMP(), True), (fewbits.HEMP(slope=1e-5), False)):
        recipe = replace(fewbits.Recipe.of(method), train=Training(epochs=1))
        notes = train(network(), recipe, data).coded.notes
        assert any("float weights" in note for note in notes) is told


def test_floats_stay_in_16_bits_as_in_the_start():
    start = fewbits.compress(network(), "smallest", load_data("digits").batches("train"))
    recipe = replace(fewbits.Recipe.of(fewbits.HEMP()), train=Training(epochs=1))
    result = train(network(), recipe, load_data("digits"), start=start)
    assert result.coded.tensors["3.bias"].stored == "float16"


def _likeness(start):
    """The share of signs in the last layer that are those of the start."""
    wanted = start.state_dict()["3.weight"].sign()
    return lambda net: float((net[3].weight.sign() == wanted).float().mean())


def test_a_weight_of_large_inputs_stays_near_its_levels():
    """Inputs a thousand times as large have such gradients, and weights a thousandth as large."""
    source, net = load_data("digits"), network()
    split = source.split("train")
    large = ArraySplit(split.inputs * 1000.0, split.labels, split.normalization)
    data = replace(source, train=large)
    with torch.no_grad():
        net[1].weight /= 1000
    start = fewbits.compress(net, fewbits.Nearest(bits=4))
    before = start.state_dict()["1.weight"]

    def moved(**settings):
        training = Training(epochs=2, hold_out=0, **settings)
        recipe = replace(fewbits.Recipe.of(fewbits.HEMP()), train=training)
        coded = train(copy.deepcopy(net), recipe, data, start=start).coded
        return float((coded.state_dict()["1.weight"] - before).norm() / before.norm())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zeros of the start have values
        assert moved() < 0.1
        assert moved(relative_clip=0) > 1
        assert moved(relative_clip=10) > 0.2
