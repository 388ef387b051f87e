"""Names that differ by what wraps a network, and those that only look like it."""

from __future__ import annotations

import pytest
from torch import nn

from fewbits.coded import ActivationGrid
from fewbits.engine.network.naming import fit_modules, fit_names, fit_sites


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("module.0.weight", "0.weight"),
        ("0.weight", "module.0.weight"),
        ("_orig_mod.0.weight", "module.0.weight"),
        ("module._orig_mod.0.weight", "0.weight"),
        ("model.0.weight", "_orig_mod.0.weight"),
        ("model._orig_mod.module.0.weight", "0.weight"),
        ("features.module.0.weight", "features.0.weight"),
        ("features._orig_mod.0.weight", "features.0.weight"),
        ("module.weight", "weight"),
    ],
)
def test_wrappers_are_looked_past_on_both_sides(theirs, ours):
    assert fit_names([theirs, "other"], [ours, "else"]) == {theirs: ours}
    assert fit_names([ours], [theirs]) == {ours: theirs}


def test_equal_names_come_first():
    names = ["0.weight", "module.0.weight"]
    assert fit_names(names, names) == dict(zip(names, names, strict=True))
    assert fit_names(["module.0.weight"], names) == {"module.0.weight": "module.0.weight"}
    assert fit_names(["head", "body.weight"], ["head", "model.body.weight"]) == {
        "head": "head",
        "body.weight": "model.body.weight",
    }


def test_what_would_become_one_name_is_not_paired():
    assert fit_names(["module.a.weight", "model.a.weight"], ["a.weight"]) == {}
    assert fit_names(["a.weight"], ["module.a.weight", "model.a.weight"]) == {}


def test_a_leaf_is_no_wrapper():
    assert fit_names(["layer.module"], ["layer"]) == {}
    assert fit_names(["module"], ["model"]) == {}


def test_places_of_grids_follow():
    grid = ActivationGrid(8, 1.0, signed=True)
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    wrapped = nn.DataParallel(plain)
    sites = ("module.0", "module.0@1", "module.1:out@2", "unknown")
    assert list(fit_sites(dict.fromkeys(sites, grid), plain)) == ["0", "0@1", "1:out@2", "unknown"]
    sites = ("0", "0@1", "1:out", "elsewhere@0")
    found = fit_sites(dict.fromkeys(sites, grid), wrapped)
    assert list(found) == ["module.0", "module.0@1", "module.1:out", "elsewhere@0"]
    single = {"": grid, "@1": grid}
    assert list(fit_sites({"module": grid}, nn.Linear(4, 4))) == [""]
    assert list(fit_sites(single, nn.Linear(4, 4))) == ["", "@1"]


def test_facts_of_modules_follow():
    plain = nn.Sequential(nn.Linear(4, 4))
    facts = {"": 1, "module": 2, "module.0": 3}
    assert fit_modules(facts, plain)["0"] == 3
    assert fit_modules(facts, nn.DataParallel(plain)) == facts


# networks whose own children have names of wrappers

TWINS = ("model.weight", "module.weight", "module.model.bias")


@pytest.mark.parametrize(
    "lead", ["module.", "module._orig_mod.", "model.", "_orig_mod.module.", "module.model."]
)
def test_what_stands_before_all_names_is_taken_off_first(lead):
    wrapped = [lead + name for name in TWINS]
    assert fit_names(wrapped, TWINS) == dict(zip(wrapped, TWINS, strict=True))
    assert fit_names(TWINS, wrapped) == dict(zip(TWINS, wrapped, strict=True))
    other = [f"_orig_mod.{name}" for name in TWINS]
    assert fit_names(wrapped, other) == dict(zip(wrapped, other, strict=True))


def test_counters_beside_what_is_wrapped_do_not_hide_it():
    theirs = [*(f"module.{name}" for name in TWINS), "n_averaged"]
    assert set(fit_names(theirs, TWINS).values()) == set(TWINS)


def test_a_missing_name_is_not_filled_from_its_neighbour():
    assert fit_names(["module.model.weight"], ["model.weight", "module.weight"]) == {
        "module.model.weight": "model.weight"
    }


def test_wrappers_within_names_that_are_no_children_s_go_before_the_others():
    theirs = ["a._orig_mod.model.weight", "a._orig_mod.module.weight", "b"]
    ours = ["a.model.weight", "a.module.weight", "b"]
    assert fit_names(theirs, ours) == dict(zip(theirs, ours, strict=True))


def test_names_that_the_network_renames_follow_the_others():
    ours = ["new.weight", "head.weight"]
    assert fit_names(["module.old.weight", "module.head.weight"], ours, renamed=True) == {
        "module.old.weight": "old.weight",
        "module.head.weight": "head.weight",
    }
    assert fit_names(["module.old.weight"], ["new.weight"], renamed=True) == {
        "module.old.weight": "old.weight"
    }
    assert fit_names(["old.weight"], ["module.new.weight"], renamed=True) == {
        "old.weight": "module.old.weight"
    }
    assert fit_names(["module.old.weight"], ["new.weight"]) == {}


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.module = nn.Linear(4, 4), nn.Linear(4, 4)


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_places_and_facts_go_by_the_tensors(wrap):
    network, sites = wrap(Twins()), ("model", "module@1", "module:out")
    grid = ActivationGrid(8, 1.0, signed=True)
    for lead in ("", "module.", "module.model."):
        tensors = [lead + name for name in Twins().state_dict()]
        found = fit_sites({lead + site: grid for site in sites}, network, tensors)
        assert list(found) == [("module." if wrap is nn.DataParallel else "") + s for s in sites]
        facts = fit_modules({f"{lead}model": 1, f"{lead}module": 2}, network, tensors)
        assert [v for k, v in facts.items() if k.endswith(("model", "module"))][-2:] == [1, 2]
