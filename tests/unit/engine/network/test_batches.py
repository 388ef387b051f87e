from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fewbits.engine.network.batches import as_batches, as_forward, call_model, describe, explained
from fewbits.errors import CalibrationError, ConfigError

NAN, INF = float("nan"), float("inf")
X = torch.zeros(2, 3)


def test_what_counts_as_batches():
    assert [len(b) for b in as_batches(torch.zeros(300, 2))] == [128, 128, 44]
    batches = [torch.zeros(2)]
    assert as_batches(batches) is batches
    assert len(as_batches(torch.zeros(1) for _ in range(3))) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "empty, it contains no batch"),
        (iter([]), "empty, it contains no batch"),
        (torch.zeros(0, 3), "empty, it contains no batch"),
        ([torch.zeros(2, 3), torch.zeros(0, 3)], "batch 1 is empty"),
        ([{"x": torch.tensor([1.0, float("nan")])}], "batch 0 contains NaN"),
        ([(torch.full((2,), float("inf")), 1)], "batch 0 contains NaN or infinite"),
        (7, "must be an iterable.*Got int"),
        (torch.tensor(1.0), "has no samples.*float32 tensor"),
        ({"x": X}, "Got dict.*wrap a single batch in a list"),
        ("train", "Got str.*wrap a single batch in a list"),
        (TensorDataset(X), "Got TensorDataset.*DataLoader"),
        (np.zeros((2, 3)), "Got ndarray.*DataLoader"),
        ([(X, torch.full((2, 3), NAN))], "batch 0 contains NaN"),
        ([{"labels": torch.zeros(2), "x": torch.full((2,), INF)}], "batch 0 contains NaN or inf"),
        ([{"x": X, "mask": torch.full((2,), NAN)}], "batch 0 contains NaN"),
    ],
)
def test_bad_calibration_data(data, message):
    with pytest.raises(CalibrationError, match=message):
        as_batches(data, Two())


def test_what_the_network_does_not_get_may_hold_anything():
    for batches in (
        [(X, X, torch.full((2,), NAN))],
        [{"x": X, "labels": torch.full((2,), NAN)}],
        [(X, torch.full((2, 2), -INF))],
        [{"x": X, "mask": torch.full((2, 2), -INF)}],
        [(X, X, torch.zeros(0))],
    ):
        assert as_batches(batches, Two()) is batches
    own = [(X, torch.full((2,), NAN))]  # forward= may well use the inputs only
    assert as_batches(own) is own
    assert len(as_batches(DataLoader(TensorDataset(X), batch_size=1))) == 2
    assert len(as_batches(deque([X, X]))) == 2


def test_how_forward_is_given():
    assert as_forward(None) is call_model
    assert as_forward(explained) is explained
    with pytest.raises(ConfigError, match=r"forward must be.*forward=lambda model, batch.*Got str"):
        as_forward("x")


class Two(nn.Module):
    def forward(self, a, b, c=None):
        return a + b


def test_how_a_batch_reaches_the_network():
    one, two = nn.Identity(), Two()
    x, y = torch.ones(2), torch.full((2,), 2.0)
    assert torch.equal(call_model(one, x), x)
    assert torch.equal(call_model(one, (x, "label")), x)
    assert torch.equal(call_model(two, [x, y, "label"]), x + y)
    assert torch.equal(call_model(two, {"a": x, "b": y, "labels": 3}), x + y)


def test_a_failing_forward_is_explained():
    forward = explained(call_model, "stage fold_batchnorm")
    with pytest.raises(CalibrationError, match=r"stage fold_batchnorm.*RuntimeError.*\(2, 5\)"):
        forward(nn.Linear(3, 3), torch.zeros(2, 5))


def test_describe():
    text = describe({"a": torch.zeros(2, 3), "b": (torch.zeros(1, dtype=torch.int64), "x")})
    assert text == "dict of a: float32 tensor (2, 3), b: tuple of int64 tensor (1,), str"


class EncoderDecoder(nn.Module):
    def __init__(self, encodes=True):
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=encodes)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, input_ids, labels=None, decoder_input_ids=None):
        return labels


@pytest.mark.parametrize(
    ("encodes", "labels", "more", "passed"),
    [
        (True, torch.zeros(2, 3), {}, True),
        (False, torch.zeros(2, 3), {}, False),
        (True, torch.zeros(2), {}, False),  # of classes
        (True, torch.zeros(2, 3), {"decoder_input_ids": X}, False),
    ],
)
def test_labels_are_inputs_of_an_encoder_decoder(encodes, labels, more, passed):
    found = call_model(EncoderDecoder(encodes), {"input_ids": X, "labels": labels, **more})
    assert (found is not None) == passed


class Told(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pixels, mask, step, ids):
        return [value.dtype for value in (pixels, mask, step, ids)]


def test_float32_inputs_follow_a_network_in_half_precision():
    half = nn.Linear(3, 2).to(torch.bfloat16)
    assert call_model(half, X).dtype == torch.bfloat16
    told = call_model(
        Told().to(torch.float16), {"pixels": X, "mask": X, "step": torch.ones(2), "ids": X.long()}
    )
    assert told == [torch.float16, torch.float32, torch.float32, torch.int64]
    mixed = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).to(torch.bfloat16))
    with pytest.raises(RuntimeError):
        call_model(mixed, X)
    assert call_model(nn.Identity(), X).dtype == torch.float32
    double = nn.Linear(3, 2).double()
    assert call_model(double, X.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("network", "batch", "told"),
    [
        (
            nn.Linear(3, 2).bfloat16(),
            X,
            r"is bfloat16, but the batch is float32.*bfloat16\)",
        ),
        (
            nn.Linear(3, 2),
            X.bfloat16(),
            r"is float32, but the batch is bfloat16.*float32\)",
        ),
        (
            nn.Sequential(nn.Linear(3, 3).bfloat16(), nn.Linear(3, 2)),
            (X, X.double()),
            r"bfloat16 and float32, but the batch is float32 and float64.*to\(torch.bfloat16\)",
        ),
    ],
)
def test_other_dtypes_are_told_with_what_to_do(network, batch, told):
    def forward(model, batch):
        return model(batch[0] if isinstance(batch, tuple) else batch)

    with pytest.raises(CalibrationError, match=told):
        explained(forward, "stage")(network, batch)


def test_an_error_that_is_not_of_dtypes_is_told_as_it_is():
    with pytest.raises(CalibrationError, match="Check the shape"):
        explained(call_model, "stage")(nn.Linear(5, 2), X)
