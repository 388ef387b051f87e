"""``compress(start=...)``: weights are rounded once more, to the levels of another network."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.coded import CodebookTensor, GridTensor, RawTensor
from fewbits.errors import ConfigError, LossWarning, ModelError
from fewbits.methods import GPFQ, GPTQ, HEMP, PWFN, RDOQ, Nearest, Qronos, Transform
from fewbits.recipe.recipe import Recipe, Rule

METHODS = {
    "nearest": Nearest(),
    "gpfq": GPFQ(),
    "gptq": GPTQ(),
    "qronos": Qronos(),
    "rdoq": RDOQ(slope=1e-4),
}
CODEBOOK = (-0.4, -0.15, -0.05, 0.0, 0.04, 0.13, 0.45)


def weights_of(coded):
    return {name: t for name, t in coded.tensors.items() if not isinstance(t, RawTensor)}


def outputs(coded, net, x):
    return coded.load_into(copy.deepcopy(net))(x).detach()


def same(first, second):
    a, b = first.state_dict(), second.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def batches(digits):
    return list(digits[0][:256].split(64))


def test_every_method_that_rounds_takes_levels_but_transform():
    kinds = fewbits.METHODS.items()
    takes = {name for name, kind in kinds if kind.capabilities.takes_levels}
    rounds = {name for name, kind in kinds if not kind.capabilities.trains}
    assert takes == set(METHODS) == rounds - {"transform"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "start", [Nearest(bits=3), Nearest(levels=6), Nearest(bits=3, per="tensor")]
)
def test_steps_and_range_of_a_grid_stay(digits_net, batches, name, start):
    before = fewbits.compress(digits_net, start, batches)
    after = fewbits.compress(digits_net, METHODS[name], batches, start=before)
    assert set(weights_of(after)) == set(weights_of(before))
    moved = 0
    for weight, old in weights_of(before).items():
        new = after.tensors[weight]
        assert isinstance(new, GridTensor)
        assert np.array_equal(new.step, old.step)
        assert np.array_equal(new.offset, old.offset)
        assert old.index.min() <= new.index.min() <= new.index.max() <= old.index.max()
        moved += int((new.index != old.index).sum())
    assert moved > 0 or name == "nearest"
    told = [e.reason for e in after.plan.entries if e.method is not None]
    assert all(reason.endswith("on the levels of the start") for reason in told)


@pytest.mark.parametrize("name", METHODS)
def test_a_codebook_of_the_start_is_one_that_is_given(digits_net, batches, name):
    method = METHODS[name]
    given = fewbits.METHODS[name](levels=CODEBOOK, **({"slope": 1e-4} if name == "rdoq" else {}))
    before = fewbits.compress(digits_net, Nearest(levels=CODEBOOK), batches)
    after = fewbits.compress(digits_net, method, batches, start=before)
    assert all(isinstance(t, CodebookTensor) for t in weights_of(after).values())
    assert same(after, fewbits.compress(digits_net, given, batches))


@pytest.mark.parametrize("group", [None, 8])
def test_groups_keep_their_steps(group):
    torch.manual_seed(0)
    net, batches = nn.Sequential(nn.Linear(16, 6)), [torch.randn(64, 16)]
    before = fewbits.compress(net, Nearest(bits=3, group=group), batches)
    after = fewbits.compress(net, GPTQ(), batches, start=before)
    assert np.array_equal(after.tensors["0.weight"].step, before.tensors["0.weight"].step)
    if group is not None:
        with pytest.raises(ConfigError, match=r"'rdoq' cannot take .*each 8 columns have a step"):
            fewbits.compress(net, RDOQ(), batches, start=before)


def test_less_error_than_rounding_to_the_same_levels(digits_net, batches, digits):
    before = fewbits.compress(digits_net, Nearest(bits=3), batches)
    held, wanted = digits[2], digits_net(digits[2]).detach()
    found = {
        name: fewbits.compress(digits_net, METHODS[name], batches, start=before)
        for name in ("gpfq", "gptq", "qronos", "rdoq")
    }
    errors = {
        name: float((outputs(coded, digits_net, held) - wanted).square().mean())
        for name, coded in {"before": before, **found}.items()
    }
    for name in ("gpfq", "gptq", "qronos"):
        assert errors[name] < 0.7 * errors["before"]
    assert errors["rdoq"] < errors["before"]
    assert len(found["rdoq"].data) < len(before.data)


def test_a_normalization_is_folded_where_the_start_has_absorbed_it(digits_net, batches, digits):
    before = fewbits.compress(digits_net, "smallest", batches)
    after = fewbits.compress(digits_net, Nearest(), batches, start=before)
    kept = fewbits.compress(digits_net, Nearest(), batches, start=live(digits_net))
    assert any("3 BatchNorm layers absorbed" in note for note in after.notes)
    assert not any("absorbed" in note for note in kept.notes)
    for coded in (after, kept):
        right = outputs(coded, digits_net, digits[2]).argmax(1) == digits[3]
        assert float(right.float().mean()) > 0.8


def live(net):
    """Return a file of which no normalization is folded."""
    return fewbits.compress(net, Recipe((Rule("*", Nearest(bits=4)),)))


def test_a_normalization_that_cannot_be_folded_again_is_refused(digits_net, batches):
    before = fewbits.compress(digits_net, "smallest", batches)

    def without_the_last(model, batch):
        return model.bn2(model.conv2(torch.relu(model.bn1(model.conv1(batch)))))

    with pytest.raises(ModelError, match=r"absorbed the BatchNorm 'bn3'.*or leave start= out"):
        fewbits.compress(digits_net, GPTQ(), batches, without_the_last, start=before)


def test_a_file_is_a_start_and_pruned_weights_stay_zero(digits_net, batches, tmp_path):
    with torch.no_grad():
        digits_net.conv3.weight[:, ::2] = 0
    before = fewbits.compress(digits_net, Qronos(bits=3), batches)
    before.save(tmp_path / "start.fewbits")
    after = fewbits.compress(digits_net, GPFQ(), batches, start=tmp_path / "start.fewbits")
    assert same(after, fewbits.compress(digits_net, GPFQ(), batches, start=before))
    assert bool((after.state_dict()["conv3.weight"][:, ::2] == 0).all())


def test_what_is_not_kept_is_told(digits_net, batches):
    rules = (
        Rule("*", Nearest(bits=4)),
        Rule("conv1", None),
        Rule("conv2", Transform(slope=1e-3, basis="klt", side="row", feedback=False)),
    )
    before = fewbits.compress(digits_net, Recipe(rules), batches, activations=8)
    lost = r"2 weights are on new levels \(conv1.weight is in float .*conv2.weight is in a basis"
    with pytest.warns(LossWarning, match=lost):
        after = fewbits.compress(digits_net, GPTQ(bits=5), batches, start=before)
    told = {e.target.name: e.reason for e in after.plan.entries}
    assert told["conv1.weight"].endswith("on new levels: it is in float in the start")
    assert told["conv2.weight"].endswith("on new levels: it is in a basis in the start")
    assert told["conv3.weight"].endswith("on the levels of the start")
    assert any("quantized inputs are in float again" in note for note in after.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LossWarning)
        rules = (Rule("*", GPTQ()), Rule("conv1", None), Rule("conv2", None))
        fewbits.compress(digits_net, Recipe(rules), batches, start=before, activations=8)


REFUSED = {
    "of its own": (Transform(), {}, "'transform' chooses its own. Methods that take levels: gpfq"),
    "lloyd": (GPTQ(levels="lloyd"), {}, "'gptq' cannot take .*levels='lloyd' asks for others"),
    "given": (RDOQ(levels=CODEBOOK), {}, "'rdoq' cannot take .*asks for others"),
    "trellis": (RDOQ(quantizer="auto"), {}, "quantizer='auto' needs a grid of its own"),
    "threshold": (GPFQ(threshold="soft"), {}, "threshold='soft' needs a grid of its own"),
    "stochastic": (GPFQ(rounding="stochastic"), {}, "rounding='stochastic' needs a grid"),
    "levels": (GPTQ(), {"target_bytes": 3000}, "a budget varies .* levels are those of start="),
    "lossless": ("lossless", {}, "levels for none of the weights"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_chooses_levels_is_refused(digits_net, batches, case):
    method, more, text = REFUSED[case]
    before = fewbits.compress(digits_net, Nearest(bits=3), batches)
    with pytest.raises(ConfigError, match=text):
        fewbits.compress(digits_net, method, batches, start=before, **more)


def test_other_starts_are_refused(digits_net, batches):
    other = nn.Sequential(nn.Linear(4, 3))
    before = fewbits.compress(other, Nearest())
    with pytest.raises(ModelError, match=r"another network: 'conv1.weight' is .* has no such"):
        fewbits.compress(digits_net, GPTQ(), batches, start=before)
    wide = fewbits.compress(nn.Sequential(nn.Linear(5, 3)), Nearest())
    with pytest.raises(ModelError, match=r"'0.weight' is \(3, 4\) here, and the start has \(3, 5"):
        fewbits.compress(other, GPTQ(), [torch.randn(9, 4)], start=wide)
    with pytest.raises(ConfigError, match="start must be a CodedModel or the path"):
        fewbits.compress(digits_net, GPTQ(), batches, start=7)
    with pytest.raises(ConfigError, match="base= quantizes differences"):
        fewbits.compress(other, GPTQ(), [torch.randn(9, 4)], start=before, base=other)
    newer = copy.deepcopy(other)
    with torch.no_grad():
        newer[0].weight.add_(0.1 * torch.randn(3, 4))
    change = fewbits.compress(newer, RDOQ(), [torch.randn(9, 4)], base=other)
    with pytest.raises(ConfigError, match="this is a delta"):
        fewbits.compress(other, Nearest(), start=change)


def test_levels_beyond_the_dtype_of_the_network_are_not_given():
    net = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        net[0].weight.mul_(1e6)
    before = fewbits.compress(net, Nearest(per="tensor"))
    half = nn.Sequential(nn.Linear(4, 3)).half()
    with pytest.raises(ConfigError, match=r"has levels up to .*, beyond its dtype"):
        fewbits.compress(half, Nearest(), start=before)


def test_a_budget_searches_the_slope_and_its_trace_knows_the_start(digits_net, batches, tmp_path):
    starts = [fewbits.compress(digits_net, Nearest(bits=b), batches) for b in (3, 4)]
    how = {"target_bytes": 2600, "evaluations": 4, "trace": tmp_path / "trace.json"}
    after = fewbits.compress(digits_net, RDOQ(), batches, start=starts[0], **how)
    assert len(after.data) <= 2600
    step = starts[0].tensors["conv2.weight"].step
    assert np.array_equal(after.tensors["conv2.weight"].step, step)
    with pytest.raises(ConfigError, match="belongs to a search with another network"):
        fewbits.compress(digits_net, RDOQ(), batches, start=starts[1], **how)


def test_a_run_to_resume_belongs_to_its_start(digits_net, batches, tmp_path):
    starts = [fewbits.compress(digits_net, Nearest(bits=b), batches) for b in (3, 4)]
    first = fewbits.compress(digits_net, GPTQ(), batches, start=starts[0], resume=tmp_path)
    again = fewbits.compress(digits_net, GPTQ(), batches, start=starts[0], resume=tmp_path)
    assert same(first, again)
    assert any("resumed after" in note for note in again.notes)
    with pytest.raises(ConfigError, match="another"):
        fewbits.compress(digits_net, GPTQ(), batches, start=starts[1], resume=tmp_path)


def test_a_method_that_trains_begins_at_the_start(digits_net, digits):
    x, y, _, _ = digits
    before = fewbits.compress(digits_net, Nearest(bits=4), x[:256])
    after = fewbits.compress(
        digits_net,
        HEMP(forward="quantized", slope=1e-4, steps="fixed"),
        train=[(x[:128], y[:128])],
        training={"epochs": 1},
        start=before,
    )
    for name, old in weights_of(before).items():
        assert np.array_equal(after.tensors[name].step, old.step)


def test_a_recipe_that_compresses_before_it_trains_has_no_other_start(digits_net, digits):
    x, y, _, _ = digits
    before = fewbits.compress(digits_net, Nearest(bits=4), x[:256])
    recipe = Recipe.of("smallest").then(HEMP())
    with pytest.raises(ConfigError, match="compresses before it trains, and start= is where"):
        fewbits.compress(digits_net, recipe, train=[(x[:64], y[:64])], start=before)


def test_a_plan_tells_whose_levels(digits_net, batches):
    before = fewbits.compress(digits_net, Nearest(bits=4))
    told = str(fewbits.plan(digits_net, GPTQ(), start=before))
    assert told.count("on the levels of the start") == 4


def test_pwfn_then_gpfq_onto_its_codebook(digits_net, digits):
    x, y, _, _ = digits
    before = fewbits.compress(
        digits_net, PWFN(), train=[(x[:512], y[:512])], training={"epochs": 2}
    )
    after = fewbits.compress(digits_net, GPFQ(), list(x[:256].split(64)), start=before)
    values = np.unique(before.tensors["conv2.weight"].codebook.values)
    assert set(np.unique(after.state_dict()["conv2.weight"].numpy())) <= set(values)
