from __future__ import annotations

import pytest
import torch
from torch import nn

from fewbits.engine.batches import as_batches, call_model, describe, explained
from fewbits.errors import CalibrationError


def test_what_counts_as_batches():
    assert [len(b) for b in as_batches(torch.zeros(300, 2))] == [128, 128, 44]
    batches = [torch.zeros(2)]
    assert as_batches(batches) is batches
    assert len(as_batches(torch.zeros(1) for _ in range(3))) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "empty: it has no batch"),
        (iter([]), "empty: it has no batch"),
        (torch.zeros(0, 3), "empty: it has no batch"),
        ([torch.zeros(2, 3), torch.zeros(0, 3)], "batch 1 is empty"),
        ([{"x": torch.tensor([1.0, float("nan")])}], "batch 0 holds NaN"),
        ([(torch.full((2,), float("inf")), 1)], "batch 0 holds NaN or infinite"),
        (7, "must be an iterable.*Got int"),
    ],
)
def test_bad_calibration_data(data, message):
    with pytest.raises(CalibrationError, match=message):
        as_batches(data)


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
    assert text == "{a: shape (2, 3), float32, b: (shape (1,), int64; str)}"
