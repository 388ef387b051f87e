"""Shared by the tests of options: one trained network of digits."""

from __future__ import annotations

import pytest
import torch

from fewbits.sources import load_data, load_model
from fewbits.sources.demo_network import train_classifier


@pytest.fixture(scope="module")
def state():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train_classifier(
        load_model("builtin:digits-mlp").module, load_data("digits"), epochs=8
    ).state_dict()
    torch.set_num_threads(before)
