"""Probes against exact gradients of every logit (acceptance test T4 of transform quantization)."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from fewbits.engine import sensitivity
from fewbits.engine.layers.targets import survey
from fewbits.engine.network.batches import call_model
from fewbits.engine.sensitivity import probe
from fewbits.errors import CalibrationError

PROBES = 1000
LAYERS = ("0", "2", "5")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def exact(network, images, metric):
    """Per weight (samples, logits, neurons, columns): a backward pass for each image and logit.

    The sum of squares over logits is the metric: centred logits, or the Fisher information.
    """
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def aim(parameters, image, one):
        logits = functional_call(network, parameters, image[None])[0]
        if metric == "logits":
            return (logits - logits.mean()) @ one
        root = logits.softmax(0).detach().sqrt()
        return (root * logits.log_softmax(0)) @ one

    each = vmap(vmap(grad(aim), (None, None, 0)), (None, 0, None))
    found = each(parameters, images, torch.eye(5))
    return {
        name: torch.cat([found[f"{name}.weight"].flatten(3), found[f"{name}.bias"][..., None]], 3)
        for name in LAYERS
    }


def probed(network, images, metric, probes, seed=0):
    targets = survey(network).targets
    forward = lambda net, batch: net(batch)  # noqa: E731
    return probe(
        network, targets, [images], forward, metric=metric, probes=probes, seed=seed
    ).layers


@pytest.fixture(scope="module")
def of_logits(network, images):
    return probed(network, images, "logits", PROBES)


def apart(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("metric", ["logits", "fisher"])
def test_a_thousand_probes_are_within_5_percent_of_all_logits(network, images, metric, of_logits):
    gradients = exact(network, images, metric)
    found = of_logits if metric == "logits" else probed(network, images, metric, PROBES)
    for name, g in gradients.items():
        plain = g[..., :-1].double()
        own = found[f"{name}.weight"]
        outputs = torch.einsum("scik,scjk->ij", plain, plain) / len(images)
        assert apart(own.outputs[0], outputs) < 0.05
        rows = own.rows[0] / own.rows.sum()
        assert apart(rows, outputs.diagonal() / outputs.trace()) < 0.05
        assert apart(own.biases[0], g[..., -1].double().square().sum((0, 1)) / len(images)) < 0.05


def test_columns_are_the_moments_of_the_rows_about_what_a_bias_repays(network, images, of_logits):
    """Every row counts about the same: by what the first probe says of it."""
    first = probed(network, images, "logits", 1)
    for name, g in exact(network, images, "logits").items():
        rows = first[f"{name}.weight"].rows[0]
        shares = 1 / rows.clamp_min(1e-3 * rows.mean())
        joint = torch.einsum("r,scri,scrj->ij", shares, g.double(), g.double())
        repaid = torch.outer(joint[:-1, -1], joint[-1, :-1]) / joint[-1, -1]
        found = of_logits[f"{name}.weight"]
        scale = joint[:-1, :-1].trace() / found.columns[0].trace()
        for has_bias, wanted in ((True, joint[:-1, :-1] - repaid), (False, joint[:-1, :-1])):
            assert apart(scale * found.moments(has_bias)[0], wanted) < 0.05


def test_the_mean_of_many_runs_is_exact(network, images):
    """No bias: the error of the mean of 16 runs is about a quarter of one run's."""
    outputs = {}
    for name, g in exact(network, images, "logits").items():
        plain = g[..., :-1].double()
        outputs[name] = torch.einsum("scik,scjk->ij", plain, plain) / len(images)
    runs = [probed(network, images, "logits", probes=4, seed=seed) for seed in range(16)]
    for name, wanted in outputs.items():
        found = torch.stack([run[f"{name}.weight"].outputs[0] for run in runs])
        single = sum(apart(one, wanted) for one in found) / len(found)
        assert apart(found.mean(0), wanted) < 0.45 * single


class Answering(nn.Module):
    """One layer, and ``answer`` of what it gives."""

    def __init__(self, answer):
        super().__init__()
        self.layer, self.answer = nn.Linear(6, 4), answer

    def forward(self, x):
        return self.answer(self.layer(x))


@torch.inference_mode()
def without_autograd(y):
    return y * 2


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (lambda y: y.argmax(-1), "return the input of argmax"),
        (lambda y: y.detach(), "detach"),
        (without_autograd, "inference_mode"),
        (lambda y: {"out": y}, "'out'"),
        (lambda y: None, "returned NoneType"),
    ],
)
def test_an_output_without_gradients_is_told_with_its_cause(answer, cause):
    net = Answering(answer).eval()
    with pytest.raises(CalibrationError, match=re.escape(cause)):
        probe(net, survey(net).targets, [torch.randn(5, 6)], call_model)


def test_first_samples_without_gradients_do_not_stand_for_all():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        net[0].bias.fill_(-5)
    dead, alive = torch.zeros(3, 6), 9 * torch.randn(40, 6)
    for batches in ([dead, alive], [alive, dead]):
        found = probe(net, survey(net).targets, batches, call_model).layers
        assert all(bool(s.columns.isfinite().all()) for s in found.values())
        assert float(found["0.weight"].columns.abs().sum()) > 0
    assert set(probe(net, survey(net).targets, [dead], call_model).layers) == set()


def test_moments_do_not_depend_on_how_many_samples_are_processed_at_once(
    network, images, monkeypatch
):
    whole = probed(network, images, "logits", probes=2)
    monkeypatch.setattr(sensitivity, "_CHUNK", 1)
    for name, found in probed(network, images, "logits", probes=2).items():
        torch.testing.assert_close(found.rows, whole[name].rows, rtol=1e-5, atol=0)
        torch.testing.assert_close(found.outputs, whole[name].outputs, rtol=1e-4, atol=1e-6)
        assert found.samples == whole[name].samples


def test_some_of_the_gradient_rows_give_the_same_moments_on_average(
    network, images, monkeypatch, of_logits
):
    """Evenly spaced rows, others in every call, estimate what all rows give."""
    monkeypatch.setattr(sensitivity, "_PER_COLUMN", 0)
    monkeypatch.setattr(sensitivity, "_LEAST", 8000)  # of 48,000 and more
    for name, found in probed(network, images, "logits", PROBES).items():
        whole = of_logits[name]
        assert apart(found.columns, whole.columns) < 0.1
        assert apart(found.outputs, whole.outputs) < 0.1
        assert not torch.equal(found.columns, whole.columns)
        torch.testing.assert_close(found.rows, whole.rows, rtol=1e-5, atol=0)


class Tokens(nn.Module):
    """Returns logits of every token under that name, as language models do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x, attention_mask=None):
        return {"logits": self.layer(x)}


@pytest.mark.parametrize("length", [2, 8])
def test_a_sequence_counts_as_one_of_its_tokens(length):
    torch.manual_seed(2)
    model = Tokens().eval()
    token = torch.randn(1, 1, 4)
    targets = survey(model).targets
    batch = {"x": token.expand(3, length, 4).contiguous()}
    one = probe(model, targets, [{"x": token}], call_model, probes=400).layers["layer.weight"]
    many = probe(model, targets, [batch], call_model, probes=400).layers["layer.weight"]
    assert torch.allclose(many.rows, one.rows, rtol=0.35)
    # the metric is the divergence of the predictions: p (1 - p) of every class
    shares = model.layer(token)[0, 0].softmax(0).detach()
    wanted = (shares * (1 - shares)).double()
    assert torch.allclose(one.rows[0] / one.rows.sum(), wanted / wanted.sum(), atol=0.06)


def test_tokens_of_padding_do_not_count():
    torch.manual_seed(2)
    model = Tokens().eval()
    x = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    batch = {"x": x, "attention_mask": mask.long()}
    targets = survey(model).targets
    seen = probe(model, targets, [batch], call_model, masks=[[mask]]).layers["layer.weight"]
    changed = x + 7 * torch.randn(2, 3, 4) * ~mask[..., None]
    other = [{**batch, "x": changed}]
    again = probe(model, targets, other, call_model, masks=[[mask]]).layers["layer.weight"]
    product = seen.rows.sum() * seen.columns[0].diagonal().sum()
    other = again.rows.sum() * again.columns[0].diagonal().sum()
    assert float(product) == pytest.approx(float(other), rel=1e-4)


def test_the_energy_of_an_output_is_that_of_a_sample_or_of_a_token():
    """Padding counts for nothing; predictions are in nats."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(6, 5))
    images = torch.randn(40, 6)
    whole = plain(images).detach()
    centred = whole - whole.mean(1, keepdim=True)
    targets = survey(plain).targets
    found = probe(plain, targets, images.split(10), call_model).energy
    assert found == pytest.approx(float(centred.square().sum(1).mean()))
    assert probe(plain, targets, [images], call_model, metric="fisher").energy == 1.0
    tokens, mask = torch.randn(3, 7, 6), torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    real = plain(tokens).detach()[mask]
    wanted = (real - real.mean(1, keepdim=True)).square().sum(1).mean()
    found = probe(plain, targets, [tokens], call_model, masks=[[mask]]).energy
    assert found == pytest.approx(float(wanted))
