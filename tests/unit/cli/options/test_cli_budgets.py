"""Budgets on the command line, with a method of the tests' own that has a slope."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fewbits
from cli_runs import run, run_json
from fewbits.cli.options.choice import choose_recipe
from fewbits.errors import ConfigError
from fewbits.evaluation.metrics import evaluate
from fewbits.methods import METHODS
from fewbits.recipe.recipe import Recipe
from fewbits.search import as_bytes, as_drop, as_seconds
from fewbits.sources import load_data, load_model, with_selection
from sloped import Sloped

MODEL = "builtin:digits-mlp"
SEARCH = ("compress", MODEL, "--weights", "net.safetensors", "--method", "sloped")
FAST = ("--effort", "fast", "-o", "new.fewbits")


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(METHODS._entries, "sloped", Sloped)


@pytest.fixture
def here(state, tmp_path, monkeypatch):
    """Work in a fresh folder that holds the checkpoint."""
    save_file(state, tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_target_size(here):
    found = run_json(*SEARCH, "--target-bytes", "7KB", *FAST)
    assert found["bytes"] == (here / "new.fewbits").stat().st_size
    assert 0.99 * 7000 <= found["bytes"] <= 7000
    trials = found["trace"]["trials"]
    assert len(trials) <= 12
    assert [t["bytes"] for t in trials if t["chosen"]] == [found["bytes"]]
    assert found["trace"]["goal"] == {"kind": "target_bytes", "limit": 7000.0, "tolerance": 0.01}
    text = run(*SEARCH, "--target-bytes", "7KB", *FAST, "--force").stdout
    assert "bits/weight" in text
    assert "search: met within 1%" in text


def test_target_bits(here):
    found = run_json(*SEARCH, "--target-bits", 3.5, *FAST)
    assert 0.99 * 3.5 <= found["size"]["bits_per_weight"] <= 3.5


def test_max_drop_is_met_on_the_selection_and_the_test_is_told(here):
    arguments = (*SEARCH, "--data", "digits", "--max-drop", "1%", *FAST)
    found = run_json(*arguments)
    reference = found["trace"]["reference"]
    (chosen,) = [t for t in found["trace"]["trials"] if t["chosen"]]
    assert reference - chosen["score"] <= 0.01 + 1e-9
    network = fewbits.load("new.fewbits", into=load_model(MODEL).module)
    selection = with_selection(load_data("digits")).batches("selection")
    assert evaluate(network, selection).accuracy == chosen["score"]
    tested = evaluate(network, load_data("digits").batches("test"))
    assert found["accuracy"]["compressed"]["accuracy"] == tested.accuracy
    text = run(*arguments, "--force").stdout
    drop = 100 * (reference - chosen["score"])
    assert f"a drop of {drop:.2f} points" in text
    assert "test:       a drop of" in text


def test_the_drop_is_that_of_the_metric_that_is_named(here):
    loss = (*SEARCH, "--data", "digits", "--metric", "loss", "--trace", "t.json")
    found = run_json(*loss, "--max-drop", "0.02", *FAST)
    (chosen,) = [t for t in found["trace"]["trials"] if t["chosen"]]
    assert found["trace"]["reference"] - chosen["score"] <= 0.02
    network = fewbits.load("new.fewbits", into=load_model(MODEL).module)
    selection = with_selection(load_data("digits")).batches("selection")
    assert -evaluate(network, selection).loss == chosen["score"]
    text = run(*loss, "--max-drop", "0.02", *FAST, "--force").stdout
    assert re.search(
        r"selection:  loss 0\.\d{4} nats, float32 .* nats: a rise of -?0\.\d{4} nats", text
    )
    assert re.search(r"test:       a rise of -?0\.\d{4} nats", text)
    other = (*loss[:-4], "--trace", "t.json", "--max-drop", "0.02", *FAST, "--force")
    assert "another network, recipe, data, effort or metric" in run(*other, code=1).stderr


def test_metrics_that_are_none_or_judge_nothing(here):
    for options, message in (
        (
            ("--metric", "los", "--max-drop", "1"),
            "unknown metric 'los'. Known: accuracy, loss, perplexity.",
        ),
        (
            ("--metric", "loss", "--max-drop", "1%"),
            "--max-drop takes a number for loss, such as 0.05",
        ),
        (("--metric", "loss", "--target-bytes", "7KB"), "add --max-drop or --selection"),
        (("--metric", "loss"), "--metric only applies to a search"),
    ):
        found = run_json(*SEARCH, "--data", "digits", *options, *FAST, code=2)
        assert message in found["error"]["message"]
    run(*SEARCH[:4], "--method", "nearest", "-o", "a.fewbits")
    evaluate_it = ("evaluate", "a.fewbits", "--data", "digits", "--metric")
    assert run_json(*evaluate_it, "loss").keys() == run_json(*evaluate_it, "accuracy").keys()
    assert "unknown metric 'los'" in run_json(*evaluate_it, "los", code=2)["error"]["message"]


def test_a_selection_of_ones_own(here):
    data = load_data("digits")
    inputs, labels = next(iter(data.batches("train", 500)))
    np.savez("selection.npz", x_train=inputs.numpy(), y_train=labels.numpy())
    options = ("--max-drop", "2%", "--selection", "selection.npz")
    found = run_json(*SEARCH, *options, *FAST)
    assert round(500 * found["trace"]["reference"]) == pytest.approx(
        500 * found["trace"]["reference"]
    )
    assert "accuracy" not in found
    scored = run_json(*SEARCH, "--target-bytes", "7KB", *options[2:], *FAST, "--force")
    assert all(t["score"] is not None for t in scored["trace"]["trials"])


def test_loaders_that_cannot_be_divided_need_a_selection(here):
    (here / "some_loaders.py").write_text(
        "from fewbits.sources import load_data\n"
        "digits = load_data('digits')\n"
        "def two():\n  return list(digits.batches('train')), list(digits.batches('test'))\n"
        "def three():\n"
        "  train, test = two()\n"
        "  return {'calibration': train[:5], 'selection': train[5:], 'test': test}\n"
    )
    options = ("--max-drop", "2%", *FAST)
    sys.modules.pop("some_loaders", None)
    refused = run(*SEARCH, "--data", "some_loaders:two", *options, code=1).stderr
    assert "Add --selection DATA" in refused
    found = run_json(*SEARCH, "--data", "some_loaders:three", *options)
    assert found["accuracy"]["compressed"]["samples"] == 449
    run(*SEARCH, "--data", "some_loaders:two", "--selection", "digits", *options, "--force")
    sys.modules.pop("some_loaders", None)


def test_calibration_and_selection_share_no_sample():
    data = with_selection(load_data("digits"))
    parts = [
        {x.numpy().tobytes() for batch, _ in data.batches(name) for x in batch}
        for name in ("calibration", "selection", "test")
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) > 1700
    assert len(parts[0]) > 600


def test_a_killed_search_is_resumed_to_the_same_bytes(here, monkeypatch):
    arguments = (*SEARCH, "--data", "digits", "--max-drop", "1%", *FAST, "--trace", "t.json")
    calls = []
    real = Sloped.encode

    def dying(self, layer):
        calls.append(layer.name)
        if len(calls) == 3 * 3 + 1:  # three layers a network
            raise KeyboardInterrupt
        return real(self, layer)

    with monkeypatch.context() as patch:
        patch.setattr(Sloped, "encode", dying)
        run(*arguments, code=130)
    assert not (here / "new.fewbits").exists()
    assert len(json.loads((here / "t.json").read_text())["trials"]) == 3
    run(*arguments)
    resumed = (here / "new.fewbits").read_bytes()
    run(*arguments[:-2], "--force")
    assert (here / "new.fewbits").read_bytes() == resumed
    before = (here / "t.json").read_text()
    run(*arguments, "--force")
    assert (here / "t.json").read_text() == before
    assert (here / "new.fewbits").read_bytes() == resumed


def test_a_budget_that_is_not_met_has_its_own_code(here):
    result = run(*SEARCH, "--target-bytes", "300", *FAST, code=3)
    assert "smallest file reached" in result.stderr
    assert result.stdout == ""
    assert not (here / "new.fewbits").exists()
    error = run_json(*SEARCH, "--target-bytes", "300", *FAST, code=3)["error"]
    assert error["type"] == "BudgetError"


def test_evaluations_and_time_end_a_search(here):
    found = run_json(*SEARCH, "--target-bytes", "2KB", "--evaluations", 2, *FAST, code=3)
    assert "all 2 evaluations are used up" in found["error"]["message"]
    found = run_json(*SEARCH, "--target-bytes", "9.9KB", "--time-budget", "0.001s", *FAST, code=0)
    assert "time budget" in found["trace"]["ended"]


def test_a_budget_takes_a_method_with_a_slope_by_default(here):
    arguments = [part for part in SEARCH if part not in ("--method", "sloped")]
    some = ("--calibration-samples", 64, "--evaluations", 2)
    rule = run_json(*arguments, "--data", "digits", "--target-bytes", "25KB", *some, *FAST)["plan"]
    assert "slope" in rule["recipe"]["rules"][0]


@pytest.mark.parametrize(
    "options",
    [
        ["--target-bytes", "7KB", "--target-bits", "3"],
        ["--target-bytes", "seven"],
        ["--target-bytes", "0"],
        ["--target-bits", "-1"],
        ["--target-bits", "nan"],
        ["--max-drop", "0.5"],
        ["--max-drop", "101%"],
        ["--max-drop", "much"],
        ["--max-drop", "1%"],
        ["--trace", "t.json"],
        ["--selection", "digits"],
        ["--time-budget", "10m"],
        ["--target-bytes", "7KB", "--time-budget", "soon"],
        ["--target-bytes", "7KB", "--evaluations", "0"],
    ],
)
def test_wrong_usage(here, options):
    assert run_json(*SEARCH, *options, *FAST, code=2)["error"]["type"] == "UsageError"


def test_a_method_without_a_slope_varies_its_levels(here):
    arguments = (*SEARCH[:-1], "nearest", "--target-bytes", "7KB", *FAST)
    told = run(*arguments).stdout
    assert "levels" in told
    assert "slope" not in told
    trials = run_json(*arguments, "--force")["trace"]["trials"]
    (best,) = [trial for trial in trials if trial["chosen"]]
    assert best["bytes"] == (here / "new.fewbits").stat().st_size <= 7000
    assert all(trial["bytes"] > 7000 for trial in trials if trial["levels"] > best["levels"])
    codebook = (*arguments, "--force", "--set", "levels=lloyd")
    assert "number of levels" in run(*codebook, code=1).stderr


def test_settings_beside_a_budget_are_those_of_smallest():
    """Also its 16-bit floats and folded BatchNorm, which a method alone does not say."""
    chosen = [
        choose_recipe(method, None, ["quantizer=auto"], None, True, searching=True)
        for method in (None, "smallest")
    ]
    assert chosen == [Recipe.of("smallest").with_settings(quantizer="auto")] * 2


def test_rdoq_meets_a_budget_with_given_levels(here):
    arguments = (*SEARCH[:-1], "rdoq", "--data", "digits", "--target-bytes", "3KB", *FAST)
    told = run_json(*arguments, "--set", "levels=[-0.4, -0.15, 0, 0.15, 0.4]")
    assert told["trace"]["trials"][0]["slope"] > 0
    assert (here / "new.fewbits").stat().st_size <= 3000
    weights = [t.flatten() for n, t in fewbits.load("new.fewbits").items() if "weight" in n]
    assert torch.isin(torch.cat(weights), torch.tensor([-0.4, -0.15, 0, 0.15, 0.4])).all()
    wrong = ("--set", "levels=[0, 0.4]", "--set", "quantizer=trellis", "--force")
    assert "'scalar' with given levels" in run(*arguments, *wrong, code=2).stderr


def test_a_sweep_searches_levels(here):
    points = run_json(*SWEEP, "--methods", "nearest", "--target-bytes", "7KB,300")["points"]
    assert [point["settings"] for point in points] == [{"method": "nearest"}] * 2
    assert points[0]["bytes"] <= 7000
    assert points[0]["levels"] % 2 == 1
    assert "at 3 levels" in points[1]["missed"]


def test_how_sizes_drops_and_durations_are_read():
    sizes = {"66200": 66200, "100KB": 100_000, "0.1MB": 100_000, "64KiB": 65536, "1.5 kb": 1500}
    assert {text: as_bytes(text) for text in sizes} == sizes
    drops = {"0.5%": 0.005, "0.005": 0.005, "0": 0.0, "20%": 0.2}
    assert {text: as_drop(text) for text in drops} == pytest.approx(drops)
    times = {"90": 90, "90s": 90, "10m": 600, "10min": 600, "1.5h": 5400}
    assert {text: as_seconds(text) for text in times} == times
    with pytest.raises(ConfigError, match=r"Write 0\.5% for 0\.5 points"):
        as_drop("0.5")


# sensitivity

NETWORK = (MODEL, "--weights", "net.safetensors", "--data", "digits")


def test_sensitivity(here):
    options = ("--bits", "2,4", "--calibration-samples", 200, "--effort", "fast")
    found = run_json("sensitivity", *NETWORK, *options, "--selection", "digits")
    rows = found["rows"]
    assert {(row["name"], row["bits"]) for row in rows} == {
        (f"{layer}.weight", bits) for layer in (1, 3, 5) for bits in (2, 4)
    }
    assert [row["harm"] for row in rows] == sorted((r["harm"] for r in rows), reverse=True)
    assert all(0.5 < row["score"] <= 1 for row in rows)
    text = run("sensitivity", *NETWORK, *options).stdout
    assert "KL per saved kB" in text
    assert "score" not in text
    assert len(text.splitlines()) == 8


def test_sensitivity_refuses(here):
    run("sensitivity", *NETWORK, "--bits", "two", code=2)
    told = run_json("sensitivity", *NETWORK, "--method", "sloped", code=2)["error"]["message"]
    assert "the setting 'bits'" in told


# sweep

SWEEP = ("sweep", *NETWORK, "--calibration-samples", 200, "--effort", "fast", "-o", "sweep.json")


def test_a_sweep_measures_what_is_asked_and_nothing_twice(here, monkeypatch):
    methods = ("--methods", "nearest,sloped", "--bits", "3,4")
    first = run_json(*SWEEP, *methods, "--slopes", "1e-3,1e-2")
    asked = [(p["settings"], p["goal"]) for p in first["points"]]
    assert asked[:2] == [({"method": "nearest", "bits": bits}, None) for bits in (3, 4)]
    assert {"method": "sloped", "slope": 0.01} in [settings for settings, _ in asked]
    assert first == {"file": "sweep.json", **json.loads((here / "sweep.json").read_text())}
    coded = fewbits.compress(
        load_model(MODEL, "net.safetensors").module, fewbits.Nearest(bits=3), source=MODEL
    )
    judged = evaluate(
        coded.load_into(load_model(MODEL).module), load_data("digits").batches("test")
    )
    assert first["points"][0]["score"] == judged.accuracy
    calls = []
    real = Sloped.encode
    monkeypatch.setattr(Sloped, "encode", lambda s, layer: calls.append(s) or real(s, layer))
    again = run_json(*SWEEP, *methods, "--slopes", "1e-3,1e-2")
    assert again == first
    assert not calls
    sized = run_json(*SWEEP, "--methods", "sloped", "--target-bytes", "7KB,300")
    assert sized["points"][:4] == first["points"]
    met, missed = sized["points"][4:]
    assert met["goal"] == {"kind": "target_bytes", "limit": 7000.0}
    assert 6930 <= met["bytes"] <= 7000
    assert missed["bytes"] is None
    assert "smallest file reached" in missed["missed"]
    text = run(*SWEEP, "--methods", "sloped", "--target-bytes", "7KB,300").stdout
    assert "missed" in text
    assert "float32: " in text


def test_a_sweep_killed_between_points_goes_on(here, monkeypatch):
    options = ("--methods", "sloped", "--slopes", "1e-4,1e-3,1e-2")
    calls = []
    real = Sloped.encode

    def dying(self, layer):
        calls.append(layer.name)
        if len(calls) == 5:  # the second network's second layer
            raise KeyboardInterrupt
        return real(self, layer)

    with monkeypatch.context() as patch:
        patch.setattr(Sloped, "encode", dying)
        run(*SWEEP, *options, code=130)
    assert len(json.loads((here / "sweep.json").read_text())["points"]) == 1
    assert len(run_json(*SWEEP, *options)["points"]) == 3


def test_a_sweep_refuses(here):
    run(*SWEEP, "--bits", "3", "--methods", "nearest")
    other = [*SWEEP, "--bits", "3", "--methods", "nearest", "--seed", 4]
    assert "made with seed 0" in run(*other, code=1).stderr
    assert "add --slopes or --target-bytes" in run_json(*SWEEP, "--methods", "sloped", code=2)[
        "error"
    ]["message"].replace("\n", " ")
    run(*SWEEP, "--methods", "nearest", code=2)
    run(*SWEEP, "--methods", "nearest", "--bits", "3", "--split", "train", code=2)
    told = run_json(*SWEEP, "--methods", "nearst", "--bits", "3", code=2)["error"]["message"]
    assert "Did you mean" in told
    plot = (*SWEEP, "--methods", "nearest", "--bits", "3", "--plot")
    assert "must end in" in run(*plot, "a.pdf", code=1).stderr


def test_a_sweep_draws_its_plot(here, monkeypatch):
    def written(vl_spec):
        return json.dumps(vl_spec)

    drawn = type(sys)("vl_convert")
    drawn.vegalite_to_svg = written
    monkeypatch.setitem(sys.modules, "vl_convert", drawn)
    run(*SWEEP, "--methods", "nearest", "--bits", "3,5", "--plot", "a.svg", "--split", "selection")
    chart = json.loads((here / "a.svg").read_text())
    assert len(chart["layer"][1]["data"]["values"]) == 2
