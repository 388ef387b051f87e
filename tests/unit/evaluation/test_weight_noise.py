"""Noise on weights, ensembles, and how sure a network may be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import CalibrationError, ConfigError
from fewbits.evaluation.metrics import evaluate
from fewbits.evaluation.weight_noise import _layer_names, calibration_error


@pytest.fixture
def batches(digits):
    x, y = digits[2:]
    return list(zip(x[:200].split(64), y[:200].split(64), strict=True))


def test_without_noise_it_is_the_evaluation(digits_net, batches):
    found = fewbits.noise_resilience(digits_net, batches, [0])[0]
    plain = evaluate(digits_net, batches)
    assert found.draws == 1
    assert found.samples == plain.samples == 200
    assert found.accuracy == found.ensemble_accuracy == pytest.approx(plain.accuracy)
    assert found.ensemble_loss == pytest.approx(plain.loss, rel=1e-6)
    assert found.deviation == 0


def test_noise_harms_and_leaves_no_trace(digits_net, batches):
    digits_net.train()
    before = {name: value.clone() for name, value in digits_net.state_dict().items()}
    small, large = fewbits.noise_resilience(digits_net, iter(batches), [0.01, 0.3], draws=4)
    assert small.accuracy > large.accuracy + 0.2
    assert large.lowest <= large.accuracy <= large.highest
    assert large.deviation > 0
    assert large.ensemble_accuracy >= large.accuracy
    after = digits_net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert digits_net.training
    again = fewbits.noise_resilience(digits_net, batches, [0.3], draws=4)[0]
    other = fewbits.noise_resilience(digits_net, batches, [0.3], draws=4, seed=1)[0]
    assert again == large != other


def test_the_noise_has_its_size_and_spares_norms(digits_net, batches):
    assert _layer_names(digits_net) == [
        "conv1.weight", "conv2.weight", "conv3.weight", "linear.weight", "linear.bias",
    ]  # fmt: skip
    seen = []

    def forward(model, batch):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return model(batch[0])

    fewbits.noise_resilience(digits_net, batches[:1], [0.1, 0.2], draws=2, forward=forward)
    own = digits_net.state_dict()
    added = [state["conv3.weight"] - own["conv3.weight"] for state in seen]
    assert [float(a.std()) for a in added] == pytest.approx([0.1, 0.1, 0.2, 0.2], rel=0.05)
    torch.testing.assert_close(added[0] * 2, added[2], rtol=1e-4, atol=1e-6)  # the same draws
    assert not torch.allclose(added[0], added[1])
    assert all(torch.equal(state["bn1.weight"], own["bn1.weight"]) for state in seen)


def test_an_ensemble_never_looks_at_labels(digits_net, batches):
    deviations = {"conv2.weight": torch.full((16, 16, 3, 3), 0.1)}
    wrong = [(x, y.flip(0)) for x, y in batches]
    found = fewbits.ensemble(digits_net, batches, deviations, draws=5)
    assert found.noise is None
    assert found.draws == 5
    order = torch.cat([y for _, y in batches])
    mean = torch.zeros(200, 10, dtype=torch.float64)

    def forward(model, batch):
        logits = model(batch[0])
        rows = next(i for i, (x, _) in enumerate(batches) if x is batch[0]) * 64
        mean[rows : rows + len(logits)] += logits.double().softmax(1) / 5
        return logits

    fewbits.ensemble(digits_net, batches, deviations, draws=5, forward=forward)
    right = float((mean.argmax(1) == order).double().mean())
    assert found.ensemble_accuracy == pytest.approx(right)
    assert found.ensemble_ece == pytest.approx(calibration_error(mean, order), abs=1e-6)
    flipped = fewbits.ensemble(digits_net, wrong, deviations, draws=5)
    shuffled = torch.cat([y for _, y in wrong])
    assert flipped.ensemble_accuracy == pytest.approx(
        float((mean.argmax(1) == shuffled).double().mean())
    )


def test_samples_of_a_trained_posterior(digits_net, batches):
    tuner = fewbits.prepare(digits_net, fewbits.PWFN(fractions=(1.0,)))
    tuner.advance(1.0)
    deviations = {name: d.clone() for name, d in tuner.session.deviations().items()}
    tuner.finish()
    found = fewbits.ensemble(digits_net, batches, deviations, draws=3)
    mean = fewbits.noise_resilience(digits_net, batches, [0])[0]
    assert abs(found.ensemble_accuracy - mean.accuracy) < 0.1


def test_calibration_error_by_hand():
    sure = torch.tensor([[0.92, 0.08], [0.96, 0.04], [0.64, 0.36], [0.26, 0.74]])
    labels = torch.tensor([0, 1, 0, 1])
    # bins of tenths: 0.92 and 0.96 together (mean 0.94, half right), 0.64 and 0.74 each right
    wanted = (2 * abs(0.94 - 0.5) + abs(0.64 - 1) + abs(0.74 - 1)) / 4
    assert calibration_error(sure, labels, bins=10) == pytest.approx(wanted, abs=1e-6)
    assert calibration_error(torch.eye(3), torch.arange(3)) == 0


def test_bad_arguments_are_refused(digits_net, batches):
    for noise in ([-0.1], [float("inf")], ["x"]):
        with pytest.raises(ConfigError, match="noise must be"):
            fewbits.noise_resilience(digits_net, batches, noise)
    with pytest.raises(ConfigError, match="draws must be"):
        fewbits.noise_resilience(digits_net, batches, [0.1], draws=0)
    with pytest.raises(CalibrationError, match="no batches"):
        fewbits.noise_resilience(digits_net, [], [0.1])
    with pytest.raises(ConfigError, match="deviations"):
        fewbits.ensemble(digits_net, batches, {"conv9.weight": torch.ones(3)})
    with pytest.raises(ConfigError, match="no layer"):
        fewbits.noise_resilience(nn.ReLU(), batches, [0.1])


def test_embeddings_are_spared_unless_tied():
    net = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20))
    assert _layer_names(net) == ["1.weight", "1.bias"]
    tied = copy.deepcopy(net)
    tied[1].weight = tied[0].weight
    assert _layer_names(tied) == ["0.weight", "1.bias"]
