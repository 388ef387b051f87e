"""Transform quantization on a small trained network: predictions, rates, guards, both forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.coded import GridTensor, TransformTensor
from fewbits.engine.layers.layer import QuantizedTransform
from fewbits.engine.layers.pack import pack, to_torch
from fewbits.engine.layers.targets import survey
from fewbits.methods import Transform

BLOCKS = {"form": "blocks", "feedback": False, "rate": "none"}
FORMS = {"entropy": {}, "rounding": {"rate": "none"}, "blocks": BLOCKS}
LAYERS = ("conv1", "conv2", "conv3", "linear")
LARGEST = "conv3"  # more than half of all weights, and of the time that they take in blocks


def drift(net, coded, images):
    """Mean squared change of the logits, but for a shift common to all: (measured, variance)."""

    other = coded.load_into(copy.deepcopy(net))
    with torch.no_grad():
        y, z = net(images), other(images)
    gap = y - z
    gap -= gap.mean(1, keepdim=True)
    spread = y - y.mean(0)
    return float(gap.square().sum(1).mean()), float(spread.square().sum(1).mean())


def only(layer, method):
    rules = (fewbits.Rule("*", None), fewbits.Rule(layer, method))
    return fewbits.Recipe(rules=rules, prepare=("fold_batchnorm",))


def in_all(form, method):
    """Return ``method`` for all layers; in blocks, for all but the largest one."""
    if form != "blocks":
        return method
    rules = (fewbits.Rule("*", method), fewbits.Rule(LARGEST, None))
    return fewbits.Recipe(rules=rules, prepare=("fold_batchnorm",))


def cost(coded, slope):
    return sum(info["distortion"] + slope * info["bits"] for info in coded.info.values())


@pytest.fixture
def few(digits):
    """Images to calibrate with."""
    return digits[0][:256]


@pytest.mark.parametrize("side", ["row", "column"])
@pytest.mark.parametrize("basis", ["klt", "elt"])
def test_with_tiny_steps_nothing_is_lost(digits_net, digits, few, basis, side):
    method = Transform(slope=1e-12, basis=basis, side=side, rate="none")
    coded = fewbits.compress(digits_net, method, calibration=few)
    kinds = {n: type(t) for n, t in coded.tensors.items() if n.endswith("conv2.weight")}
    assert set(kinds.values()) == {TransformTensor}
    measured, spread = drift(digits_net, coded, digits[2])
    assert measured / spread < 1e-6


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=pytest.mark.slow) if f == "blocks" else f for f in FORMS]
)
def test_a_larger_slope_gives_fewer_bytes_and_more_distortion(digits_net, digits, few, form):
    """T10, on images that do not calibrate."""
    found = []
    for slope in (1e-4, 1e-3, 1e-2):
        method = Transform(slope=slope, **FORMS[form])
        coded = fewbits.compress(digits_net, in_all(form, method), few)
        found.append((len(coded.data), drift(digits_net, coded, digits[2])[0]))
    assert [size for size, _ in found] == sorted((s for s, _ in found), reverse=True)
    assert [error for _, error in found] == sorted(error for _, error in found)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_basis_is_only_taken_where_it_pays(digits_net, digits, form):
    """T11: the mixed scheme never costs 1 % more than no transform; and somewhere one pays."""
    slope, found = 3e-4, {}
    for basis in ("none", "elt"):
        method = Transform(slope=slope, basis=basis, **FORMS[form] | {"feedback": False})
        for layer in LAYERS:  # alone, so that all see the same inputs
            recipe = only(layer, method)
            found[basis, layer] = fewbits.compress(digits_net, recipe, calibration=digits[0])
    for layer in LAYERS:
        plain = cost(found["none", layer], slope)
        assert cost(found["elt", layer], slope) <= plain * 1.01
    total = {b: sum(cost(found[b, x], slope) for x in LAYERS) for b in ("none", "elt")}
    assert total["elt"] < total["none"]


def test_feedback_pays_and_then_a_rate_does(digits_net, few):
    slope, total = 3e-4, {}
    for feedback, rate in ((False, "none"), (True, "none"), (True, "adaptive")):
        method = Transform(slope=slope, feedback=feedback, rate=rate)
        coded = fewbits.compress(digits_net, method, calibration=few)
        total[feedback, rate] = cost(coded, slope)
    assert total[True, "adaptive"] < total[True, "none"] < total[False, "none"]


@pytest.mark.parametrize("basis", ["klt", "elt"])
@pytest.mark.parametrize("side", ["row", "column"])
def test_a_rate_pays_in_a_basis(digits_net, few, basis, side):
    slope, total = 3e-3, {}
    for rate in ("none", "static"):
        method = Transform(slope=slope, basis=basis, side=side, rate=rate)
        coded = fewbits.compress(digits_net, only("conv2", method), calibration=few)
        assert coded.info["conv2.weight"]["vectors"] > 0
        total[rate] = cost(coded, slope)
    assert total["static"] <= total["none"]  # rounding is tried too


@pytest.mark.parametrize("form", ["rounding", "blocks"])
def test_a_basis_has_the_depth_that_costs_least(digits_net, few, form):
    slope, total = 1e-3, {}
    for bits in (None, 2, 3, 4, 5):
        settings = FORMS[form] | {"basis_bits": bits, "feedback": False}
        coded = fewbits.compress(
            digits_net, only("conv2", Transform(slope=slope, side="row", **settings)), few
        )
        total[bits] = cost(coded, slope)
    assert total.pop(None) == pytest.approx(min(total.values()))


def test_the_bits_are_those_of_the_file(digits_net, few):
    """T9: the rate that is reported is the file's, and the method's count is near it."""
    for method in (Transform(slope=1e-4), Transform(slope=1e-4, side="row", rate="none")):
        coded = fewbits.compress(digits_net, method, calibration=few)
        file = coded.encode("fast")
        report = coded.size_report("fast")
        assert report.bits_per_weight == pytest.approx(8 * len(file) / report.weights)
        told = sum(info["bits"] for info in coded.info.values())
        raw = sum(row.bytes for row in report.rows if row.kind == "raw")
        rest = sum(row.bytes for row in report.rows if row.kind == "file")
        assert 8 * (len(file) - raw - rest) == pytest.approx(told, rel=0.08)


@pytest.mark.parametrize("method", [
    Transform(slope=1e4), Transform(slope=1e4, side="row", basis="klt"),
    Transform(slope=1e4, rate="none"),
    pytest.param(Transform(slope=1e4, **BLOCKS), marks=pytest.mark.slow)])  # fmt: skip
def test_no_layer_is_ever_all_zeros(digits_net, few, method):
    """T14."""
    coded = fewbits.compress(digits_net, in_all(method.form, method), calibration=few)
    state = coded.state_dict()
    assert all(bool(state[f"{layer}.weight"].any()) for layer in LAYERS)


def test_blocks_have_no_more_levels_than_their_bits(digits_net, few):
    """T7: strictly, as the paper's own code does not."""
    recipe = in_all("blocks", Transform(slope=1e-3, **BLOCKS))
    coded = fewbits.compress(digits_net, recipe, calibration=few)
    for name, tensor in coded.tensors.items():
        leaf = tensor.coefficients if isinstance(tensor, TransformTensor) else tensor
        if not isinstance(leaf, GridTensor):
            continue
        rows = leaf.index - np.broadcast_to(leaf.offset, (len(leaf.index),))[:, None]
        size = math.ceil(len(rows) / 8)
        billed = 0.0
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            bits = math.ceil(math.log2(len(np.unique(block)))) if block.any() else 0
            billed += bits * block.size
        assert billed <= coded.info[name]["bits"] * (1 + 1e-9)


@pytest.mark.parametrize(
    "settings",
    [{"form": "blocks"}, {"form": "blocks", "feedback": False}, {"rate": "often"},
     {"feedback": False, "form": "entropy", "rate": None}],
)  # fmt: skip
def test_settings_that_do_not_go_together(settings):
    with pytest.raises(fewbits.ConfigError):
        Transform(**settings)


@pytest.mark.parametrize("side", ["row", "column"])
@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(6, 9, 3), nn.Conv2d(6, 4, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2),
     nn.Linear(7, 5), nn.Conv1d(4, 4, 5)],
    ids=str,
)  # fmt: skip
def test_the_file_holds_the_very_values_of_the_result(module, side):
    target = survey(nn.Sequential(module)).targets[0]
    view = target.view
    matrix = view.matrix(module.weight.detach())
    groups, neurons, columns = matrix.shape
    kernel = math.prod(view.kernel)
    channels = columns // kernel if side == "row" else neurons
    rest = matrix.numel() // channels
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randint(-5, 6, shape, generator=g, dtype=torch.int32)  # noqa: E731
    result = QuantizedTransform(
        draw(3, rest), torch.rand(3, generator=g), torch.tensor([0.0, 0.5, 0.0]),
        draw(channels, 3), torch.tensor([0.1]), side, (groups, neurons, columns), kernel,
    )  # fmt: skip
    values = view.tensor(result.dequantize(), target.shape)
    assert torch.equal(to_torch(pack(result, target, torch.float32)), values)
