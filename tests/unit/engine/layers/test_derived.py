"""Weight norm and spectral norm, in both forms: kept exactly, and told when they get in the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fewbits
from fewbits.engine.layers.derived import derived_from, difference

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

FORMS = {
    "weight norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "spectral norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
    "newer weight norm": (parametrizations.weight_norm, None),
    "newer spectral norm": (parametrizations.spectral_norm, None),
}


def network(norm=None):
    first = nn.Linear(8, 8) if norm is None else norm(nn.Linear(8, 8))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(8, 4)).eval()


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture
def normed(form):
    torch.manual_seed(0)
    made = network(FORMS[form][0])
    made(torch.rand(4, 8))
    return made


@pytest.fixture
def file(normed, tmp_path):
    fewbits.compress(normed, "nearest").save(tmp_path / "net.fewbits")
    return tmp_path / "net.fewbits"


def without(form, normed):
    """The same network with its norm removed."""
    remove = FORMS[form][1]
    if remove is None:
        parametrize.remove_parametrizations(normed[0], "weight")
    else:
        remove(normed[0])
    return normed


def test_a_norm_survives_exactly_and_the_plan_says_how_to_code_its_weight(form, normed, file):
    weight = normed[0].weight.detach().clone()
    reasons = fewbits.plan(normed, "nearest").kept
    told = next(reason for name, reason in reasons.items() if "orig" in name or "_g" in name)
    assert f"({form.removeprefix('newer ')})" in told
    into = fewbits.load(file, into=network(FORMS[form][0]))
    into(torch.rand(4, 8))
    assert torch.equal(into[0].weight, weight)
    call = told.rpartition("makes: ")[2]
    eval(call, {"torch": torch, "module": normed[0]})
    assert "0.weight" in {entry.target.name for entry in fewbits.plan(normed, "nearest").entries}
    assert torch.allclose(normed[0].weight, weight)


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "never there"])
def test_a_file_with_a_norm_names_it_to_a_network_without(form, normed, file, removed):
    into = without(form, normed) if removed else network()
    before = into[0].weight.detach().clone()
    with pytest.raises(
        fewbits.ModelError, match=r"network has '0.weight', of which the file"
    ) as error:
        fewbits.load(file, into=into)
    assert torch.equal(into[0].weight, before)
    call = str(error.value).rpartition("afterwards: ")[2].partition(". Or")[0]
    again = fewbits.load(file, into=network(FORMS[form][0]))
    eval(call, {"torch": torch, "network": again})
    assert set(again.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_a_file_without_a_norm_names_it_to_a_network_with_one(form, normed, tmp_path):
    fewbits.compress(without(form, normed), "nearest").save(tmp_path / "plain.fewbits")
    into = network(FORMS[form][0])
    with pytest.raises(fewbits.ModelError, match=r"file has '0.weight', which") as error:
        fewbits.load(tmp_path / "plain.fewbits", into=into)
    call = str(error.value).rpartition("before loading: ")[2].removesuffix(".")
    eval(call, {"torch": torch, "network": into})
    fewbits.load(tmp_path / "plain.fewbits", into=into)  # where one was removed
    values = fewbits.load(tmp_path / "plain.fewbits")
    for loaded in (into, fewbits.load(tmp_path / "plain.fewbits", into=network())):
        assert all(torch.equal(loaded.state_dict()[name], value) for name, value in values.items())
    fewbits.load(tmp_path / "plain.fewbits", into=normed, lazy=True)
    assert torch.equal(normed(torch.ones(1, 8)), into(torch.ones(1, 8)))


def test_the_other_form_of_a_norm_is_converted_or_named(form, normed, file):
    kind = form.removeprefix("newer ")
    other = kind if form != kind else f"newer {kind}"
    into = network(FORMS[other][0])
    if form == "weight norm":  # torch converts it
        fewbits.load(file, into=into)
        assert torch.allclose(into[0].weight, normed[0].weight)
        return
    with pytest.raises(fewbits.ModelError, match=rf"form .* of {kind}, the network in the .* form"):
        fewbits.load(file, into=into)


def test_other_parametrizations_and_pruning_are_known_by_their_names():
    names = {"a.parametrizations.w.original", "b.weight_orig", "b.weight_mask", "gain_g"}
    made = derived_from("a.parametrizations.w.original", names)
    assert (made.kind, made.name, made.newer) == ("parametrization", "a.w", True)
    made = derived_from("b.weight_mask", names)
    assert (made.kind, made.removal()) == (
        "pruning",
        "torch.nn.utils.prune.remove(module, 'weight')",
    )
    assert derived_from("gain_g", names) is None
    assert difference(names, names) == ""
    assert difference({"b.weight"}, {"b.bias"}) == ""
