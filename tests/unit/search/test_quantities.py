"""Sizes, drops and durations: numbers and texts, the same in Python and on the command line."""

import math

import pytest

import fewbits
from fewbits.errors import ConfigError
from fewbits.search import Goal, as_bytes, as_drop, as_seconds


def test_numbers_and_texts_mean_the_same():
    assert as_bytes(100_000) == as_bytes("100KB") == as_bytes("0.1 MB") == 100_000
    assert as_drop(0.005) == as_drop("0.5%") == as_drop("0.005")
    assert as_seconds(600) == as_seconds("10m") == 600
    assert Goal.of(target_bytes="64KiB") == Goal.of(target_bytes=65_536)
    assert as_drop(3.5) == 3.5  # a score need not be a share


@pytest.mark.parametrize("read", [as_bytes, as_drop, as_seconds])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, None, "", "ten", "1 apple", []])
def test_what_is_refused(read, value):
    with pytest.raises(ConfigError, match=r"^--option .*Got"):
        read(value, "--option")


def test_a_drop_that_is_likely_meant_in_points():
    with pytest.raises(ConfigError, match=r"Write 0\.5% for 0\.5 points"):
        as_drop("0.5")


def test_compress_takes_texts(digits_net):
    coded = fewbits.compress(
        digits_net, "rdoq", torch_batch(), target_bytes="9KB", evaluations=4, time_budget="5m"
    )
    assert coded.trace.best.bytes <= 9000


def torch_batch():
    import torch

    return torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
