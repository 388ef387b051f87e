"""The bias of a layer: which parameter it is, and how it is corrected and rounded."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fewbits.engine.layers.layer import LayerMatrix
from fewbits.engine.layers.targets import survey
from fewbits.engine.lockstep.biases import bias_of, round_bias, shift_bias
from fewbits.engine.lockstep.lockstep import run_lockstep
from fewbits.engine.lockstep.quantizer import LayerQuantizer, Work
from fewbits.engine.network.batches import call_model
from fewbits.methods import GPFQ, Nearest


def _result(**what):
    weight = torch.ones(1, 3, 2)
    return replace(Nearest(bits=4).encode(LayerMatrix("weight", weight)), **what)


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)).eval()


def test_the_bias_of_a_layer_or_what_takes_its_place():
    net = _network()
    first, second = survey(net).targets
    assert bias_of(net, first, "") == ("0.bias", "")
    assert bias_of(net, second, "") == ("", "the layer has none")
    assert bias_of(net, second, "0.bias") == ("0.bias", "")
    net.other = nn.Linear(6, 8)
    net.other.bias = net[0].bias
    assert bias_of(net, first, "") == ("", "it is shared with another layer")


def test_a_result_that_says_nothing_of_biases_leaves_them():
    bias = torch.tensor([0.1, 0.2, 0.3])
    assert not shift_bias(bias, _result())
    assert not round_bias(bias, _result())
    assert bias.tolist() == torch.tensor([0.1, 0.2, 0.3]).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_biases_become_multiples_of_their_steps(dtype):
    bias = torch.tensor([0.3, -1.3, 5.1], dtype=dtype)
    assert round_bias(bias, _result(bias_step=torch.tensor([0.25, 0.5, 2.0**-20])))
    assert bias[:2].tolist() == [0.25, -1.5]
    assert float(bias[2]) == pytest.approx(5.1, rel=2**-8)


def test_values_that_would_not_be_finite_stay():
    bias = torch.tensor([65504.0, float("inf"), 3.0], dtype=torch.float16)
    assert round_bias(bias, _result(bias_step=torch.tensor([2.0**15] * 3)))
    assert bias.tolist() == [65504.0, float("inf"), 0.0]


def test_later_layers_are_calibrated_on_rounded_biases():
    """The inputs of the second layer are those with the first one's rounded bias."""
    net, batch = _network(), torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    plain = GPFQ(bits=8)
    seen = []

    def encode(layer):
        if layer.weight.shape[2] == 8:
            seen.append(layer.statistics.quantized_mean)
        steps = torch.full((layer.weight.shape[1],), 0.5)
        return replace(plain.encode(layer), bias_step=steps)

    changed = _network()
    targets = survey(changed).targets
    work = {target.module: [Work(target, encode)] for target in targets}
    done = {}
    observer = LayerQuantizer(changed, work, 1, 0, keep=done.__setitem__)
    run_lockstep(net, changed, list(work), [batch], call_model, observer)
    bias = changed[0].bias.detach()
    assert torch.equal(bias, (2 * bias).round() / 2)
    both = "corrected by the mean error; rounded as finely as the slope pays for"
    assert (done["0"].changes, done["2"].changes) == ({"0.bias": both}, {})
    with torch.no_grad():
        expected = changed[:2](batch).mean(0)
    torch.testing.assert_close(seen[0].reshape(-1), expected, rtol=1e-4, atol=1e-5)


def test_differences_from_another_network_keep_their_biases():
    net, changed = _network(), _network()
    base = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    batch = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))

    def encode(layer):
        result = GPFQ(bits=4, bias_correction=False).encode(layer)
        return replace(result, bias_step=torch.ones(layer.weight.shape[1]))

    targets = survey(changed).targets
    work = {t.module: [Work(t, encode, base=base[t.name] / 2)] for t in targets}
    observer = LayerQuantizer(changed, work, 1, 0)
    run_lockstep(net, changed, list(work), [batch], call_model, observer)
    assert torch.equal(changed[0].bias, net[0].bias)
