"""Schemes of installed packages, of networks as of data."""

from __future__ import annotations

import sys

from fewbits.sources import DATA, MODELS
from packages import install, installed_in

CODE = """
import torch
from fewbits.sources import DataSource, StreamSplit

def network(spec, pretrained):
    assert spec.scheme == "tiny" and pretrained
    return torch.nn.Linear(int(spec.target), 2)

def data(spec):
    spec.parsed({})
    batch = torch.ones(3, int(spec.target)), torch.zeros(3, dtype=torch.int64)
    return DataSource(spec.text, StreamSplit(lambda: [batch]))
"""
USE = """
from fewbits import SourceError
from fewbits.sources import DATA, MODELS, code_of, load_data, load_model

assert load_model("tiny:5").module.in_features == 5
(batch,) = load_data("ones:4").batches("train")
assert batch[0].shape == (3, 4)
assert code_of("tiny:5", "model") == code_of("ones:4", "data") == ""
assert "tiny" not in DATA and "ones" not in MODELS
try:
    load_model("tyni:5/")
except SourceError as error:
    assert "Did you mean 'tiny'" in str(error)
"""


def test_a_package_brings_schemes_of_networks_and_of_data(tmp_path):
    points = {"fewbits.models": {"tiny": "tiny:network"}, "fewbits.data": {"ones": "tiny:data"}}
    install(tmp_path, "tiny", {"tiny.py": CODE}, points)
    with installed_in(tmp_path, MODELS, DATA):
        exec(USE, {})
    assert "tiny" not in sys.modules
    assert "tiny" not in MODELS
