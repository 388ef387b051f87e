"""Perplexity and other metrics of sequences against a count by hand, and metrics of one's own."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewbits.errors import CalibrationError, ConfigError, ModelError
from fewbits.evaluation import METRICS, OwnMetric, sequences
from fewbits.evaluation.metrics import Score, evaluate, evaluate_by

WORDS = 11
DRAW = torch.Generator().manual_seed(1)
IDS = torch.randint(0, WORDS, (3, 9), generator=DRAW)


class Language(nn.Module):
    """Predicts from the token alone; with ``sees`` > 0 also from tokens that far ahead."""

    def __init__(self, sees=0, encodes=False):
        super().__init__()
        self.table = nn.Embedding(WORDS, WORDS)
        nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(2))
        self.sees, self.config = sees, SimpleNamespace(is_encoder_decoder=encodes)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.table(input_ids)
        if self.sees:
            logits = logits + self.table(input_ids.roll(-self.sees, 1))
        return SimpleNamespace(logits=logits, loss=labels)


def by_hand(model, ids, counts=lambda row, place: True):
    """Return the number of next tokens that count, their mean cross-entropy and accuracy."""
    losses, right = [], 0
    for row in range(len(ids)):
        for place in range(ids.shape[1] - 1):
            if counts(row, place):
                logits = model.table.weight[ids[row, place]].detach().double()
                wanted = int(ids[row, place + 1])
                losses.append(float(logits.exp().sum().log() - logits[wanted]))
                right += int(logits.argmax()) == wanted
    return len(losses), sum(losses) / len(losses), right / len(losses)


@pytest.mark.parametrize("batch", [{"input_ids": IDS}, IDS, (IDS,)])
def test_every_token_predicts_the_next_one(batch):
    model = Language()
    found = evaluate(model, [batch], metrics=("perplexity",))
    count, loss, accuracy = by_hand(model, IDS)
    assert found.samples == count == 24
    assert found.loss == pytest.approx(loss)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.value("perplexity") == pytest.approx(math.exp(loss), rel=1e-6)
    assert str(found).endswith("on 24 tokens")
    assert found.to_dict()["tokens"] == 24


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_neither_predicts_nor_is_predicted(side):
    mask = torch.ones_like(IDS)
    mask[1, slice(0, 4) if side == "left" else slice(5, None)] = 0
    model = Language()
    found = evaluate(model, [{"input_ids": IDS, "attention_mask": mask}], metrics=("perplexity",))
    count, loss, _ = by_hand(model, IDS, lambda r, p: bool(mask[r, p] and mask[r, p + 1]))
    assert found.samples == count < 24
    assert found.loss == pytest.approx(loss)


def test_labels_of_a_language_model_are_shifted_and_others_are_not():
    model, labels = Language(), IDS.clone()
    labels[:, :3] = -100  # a prompt, which does not count
    found = evaluate(model, [{"input_ids": IDS, "labels": labels}])
    assert found.loss == pytest.approx(by_hand(model, IDS, lambda r, p: p >= 2)[1])
    other = torch.full_like(IDS, -100)
    other[:, 4] = (IDS[:, 4] + 1) % WORDS  # of this very place, as of a masked token
    found = evaluate(model, [{"input_ids": IDS, "labels": other}])
    assert found.samples == 3
    wanted = F.cross_entropy(model.table(IDS[:, 4]), other[:, 4])
    assert found.loss == pytest.approx(float(wanted.detach()), rel=1e-6)


def test_labels_of_an_encoder_decoder_are_what_its_logits_predict():
    model = Language(encodes=True)
    found = evaluate(model, [{"input_ids": IDS, "labels": IDS}])
    assert found.samples == 27
    wanted = F.cross_entropy(model.table(IDS).flatten(0, 1), IDS.flatten())
    assert found.loss == pytest.approx(float(wanted.detach()), rel=1e-6)


def test_slices_do_not_change_the_result_and_are_small(monkeypatch):
    model = Language()
    whole = evaluate(model, [IDS], metrics=("perplexity",))
    monkeypatch.setattr(sequences, "_SLICE", 2 * WORDS)
    logits = model.table(IDS).to(torch.bfloat16)
    parts = list(sequences.rows(logits, IDS))
    assert {len(part) for part, _ in parts} == {1, 2}
    assert all(part.dtype == torch.float32 for part, _ in parts)
    assert torch.equal(torch.cat([part for part, _ in parts]), logits.float().flatten(0, 1))
    found = evaluate(model, [IDS], metrics=("perplexity",))
    assert found.value("perplexity") == pytest.approx(whole.value("perplexity"), rel=1e-12)


def test_a_network_that_sees_what_it_should_predict_is_refused():
    with pytest.raises(CalibrationError, match="depend on later tokens"):
        evaluate(Language(sees=1), [IDS])
    evaluate(Language(sees=1), [{"input_ids": IDS, "labels": (IDS + 1) % WORDS}])


def test_a_metric_may_take_whole_sequences(monkeypatch):
    class Whole:
        """Sequences that are right from end to end."""

        name, summary, unit, higher_is_better, takes = "whole", "all right", "%", True, "sequences"

        def __init__(self):
            self.right = self.count = 0

        def update(self, logits, labels):
            good = (logits.argmax(-1) == labels) | (labels == -100)
            self.right += int(good.all(1).sum())
            self.count += len(good)

        def result(self):
            return self.right / self.count

    METRICS.register("whole")(Whole)
    try:
        model = Language()
        model.table.weight.data = 5 * torch.eye(WORDS).roll(1, 1)  # each is followed by the next
        ids = torch.stack([torch.arange(6), torch.tensor([0, 1, 2, 3, 4, 9])])
        assert evaluate(model, [ids], metrics=("whole",)).value("whole") == 0.5
        with pytest.raises(CalibrationError, match="measures sequences"):
            evaluate(nn.Identity(), [(torch.eye(3), torch.arange(3))], metrics=("whole",))
    finally:
        METRICS.unregister("whole")


def test_only_known_forms_can_be_registered():
    class Odd:
        name, summary, unit, higher_is_better, takes = "odd", "odd", "", True, "pixels"
        update = result = None

    with pytest.raises(ConfigError, match=r"takes.*rows or sequences"):
        METRICS.register("odd")(Odd)


def test_an_infinite_perplexity_is_infinite():
    metric = METRICS["perplexity"]()
    metric.update(torch.tensor([[0.0, -1e4]]), torch.tensor([1]))
    assert metric.result() == math.inf


# metrics of one's own


def gap(model, batches):
    """How far apart the weights are."""
    assert not model.training
    assert not torch.is_grad_enabled()
    return model.weight.max() - model.weight.min() + (0 if batches is None else len(batches))


def test_a_metric_of_ones_own_gets_the_network_and_the_batches():
    model = nn.Linear(2, 2).train()
    metric = OwnMetric("mine:gap", gap)
    alone, told = (evaluate_by(metric, model, batches) for batches in (None, [1, 2, 3]))
    assert told.value("mine:gap") == pytest.approx(alone.value("mine:gap") + 3)
    assert str(alone) == f"mine:gap {alone.result:.4f}"
    assert list(alone.to_dict()) == ["mine:gap", "seconds"]
    assert model.training
    assert Score(metric, None)(model) == alone.result


def test_it_says_itself_which_way_is_better():
    def error(model, batches):
        return 0.25

    error.higher_is_better, error.unit = False, "%"
    metric = OwnMetric("mine:error", error)
    assert Score(metric, None)(nn.Linear(1, 1)) == -0.25
    assert str(evaluate_by(metric, nn.Linear(1, 1), None)) == "mine:error 25.00%"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda model, batches: 1 / 0, "'mine:it' raised ZeroDivisionError"),
        (lambda model, batches: "good", "returned str; expected one number"),
        (lambda model, batches: torch.ones(2), "returned Tensor; expected one number"),
        (lambda model, batches: None, "returned NoneType"),
    ],
)
def test_a_metric_that_fails_is_told(function, message):
    with pytest.raises(ModelError, match=message):
        evaluate_by(OwnMetric("mine:it", function), nn.Linear(1, 1), None)
