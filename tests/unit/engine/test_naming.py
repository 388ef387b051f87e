"""Names that differ by what wraps a network, and those that only look like it."""

from __future__ import annotations

import pytest
from torch import nn

from fewbits.coded import ActivationGrid
from fewbits.engine.naming import fit_modules, fit_names, fit_sites


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
