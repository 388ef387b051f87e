"""A recipe's training stage: what becomes of normalizations that the stage before absorbed."""

from __future__ import annotations

import pytest
import torch

import fewbits
from fewbits.sources import load_data
from fewbits.stages import Training
from fewbits.training.recipes import train


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
