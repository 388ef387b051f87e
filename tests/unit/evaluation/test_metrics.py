"""Accuracy and loss against a count by hand, and every way the data can be wrong."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fewbits.errors import CalibrationError, ModelError
from fewbits.evaluation.metrics import evaluate


class Identity(nn.Module):
    def forward(self, logits):
        return logits


LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 5.0], [1.0, 3.0, 0.0]])
LABELS = torch.tensor([0, 1, 1])


def test_accuracy_and_loss_equal_the_count_by_hand():
    found = evaluate(Identity(), [(LOGITS[:2], LABELS[:2]), (LOGITS[2:], LABELS[2:])])
    by_hand = 0.0
    for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        by_hand += math.log(sum(math.exp(v) for v in row)) - row[label]
    assert found.samples == 3
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(by_hand / 3)
    assert found.to_dict()["accuracy"] == found.accuracy
    assert str(found) == f"accuracy 66.67%, loss {by_hand / 3:.4f} on 3 samples"
    assert list(found.to_dict()) == ["samples", "accuracy", "loss", "seconds"]
    assert evaluate(Identity(), [(LOGITS, LABELS)], metrics=("loss", "accuracy")).others == {}


def test_mode_of_every_module_stays_and_evaluation_mode_is_used():
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 3))
    model.train()
    model[1].eval()
    first = evaluate(model, [(LOGITS, LABELS)])
    assert first.loss == evaluate(model, [(LOGITS, LABELS)]).loss  # no dropout
    assert model.training
    assert model[0].training
    assert not model[1].training


def test_dicts_and_results_with_logits_are_understood():
    class Wrapped(nn.Module):
        def forward(self, pixels):
            return SimpleNamespace(logits=pixels)

    assert evaluate(Wrapped(), [{"pixels": LOGITS, "labels": LABELS}]).accuracy == pytest.approx(
        2 / 3
    )


def test_forward_replaces_the_call():
    found = evaluate(Identity(), [(LOGITS, LABELS)], lambda model, batch: -model(batch[0]))
    assert found.accuracy == 0


def test_progress_hears_every_batch():
    events = []
    evaluate(Identity(), [(LOGITS, LABELS)] * 3, progress=events.append)
    assert [(e.stage, e.done, e.total) for e in events] == [("evaluate", k, 3) for k in range(4)]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches"),
        ([LOGITS], "no class labels"),
        ([(LOGITS,)], "no class labels"),
        ([(LOGITS, LABELS.float())], "no class labels"),
        ([(LOGITS, torch.tensor([0, 1, 3]))], "has 3 classes"),
        ([(LOGITS, torch.tensor([0, -1, 2]))], "from -1 to 2"),
    ],
)
def test_bad_data_is_a_calibration_error(batches, message):
    with pytest.raises(CalibrationError, match=message):
        evaluate(Identity(), batches)


def test_a_failing_forward_names_batch_and_shape():
    model = nn.Linear(5, 3)
    with pytest.raises(ModelError, match=r"batch 0, .*\(3, 3\).*raised RuntimeError"):
        evaluate(model, [(LOGITS, LABELS)])
    assert model.training


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 3, 1)])
def test_results_that_are_no_logits(shape):
    with pytest.raises(ModelError, match=r"expected logits of shape \(3, classes\)"):
        evaluate(Identity(), [(LOGITS, LABELS)], lambda model, batch: torch.zeros(shape))
