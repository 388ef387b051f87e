"""A recipe's training stage: what becomes of normalizations that the stage before absorbed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewbits
from fewbits.recipe.training_config import Training
from fewbits.sources import load_data
from fewbits.training.from_recipe import train


@pytest.mark.parametrize(("norms", "gains"), [("absorbed", False), ("live", True)])
def test_absorbed_norms_stay_so_or_come_back_to_life(digits_net, digits, norms, gains):
    first = fewbits.Recipe.of(fewbits.GPFQ(bits=4), calibrated=True)
    start = fewbits.compress(digits_net, first, calibration=digits[0][:128])
    stage = Training(method=fewbits.HEMP(forward="quantized"), epochs=1, norms=norms)
    recipe = fewbits.Recipe((fewbits.Rule("*", fewbits.GPFQ(bits=4)),), train=stage)
    trained = train(digits_net, recipe, load_data("digits"), start=start, logs=())
    assert trained.coded is not None
    loaded = trained.coded.load_into(digits_net)
    assert bool((loaded.bn1.running_mean == 0).all())  # settled again, if it was alive
    assert bool(torch.any(loaded.bn1.weight != 1)) is gains


@pytest.mark.parametrize("sort", [False, True])
def test_neurons_are_sorted_where_the_recipe_says_so(sort):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    method = fewbits.HEMP(levels=7, spacing="even", forward="quantized", rate_weight=0.0)
    stage = Training(epochs=1, prune=0.8, sort=sort)
    recipe = fewbits.Recipe((fewbits.Rule("*", method),), train=stage)
    trained = train(net, recipe, load_data("digits"), logs=())
    told = any("sorted" in note for note in trained.coded.notes)
    used = (net[1].weight != 0).sum(1) + (net[3].weight != 0).sum(0)
    assert (told, bool((used.diff() <= 0).all())) == (sort, sort)
