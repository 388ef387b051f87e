"""``--report`` of every verb that has it, and ``report`` of results: one page, what is printed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fewbits
from cli_runs import one_line_error, run, run_json
from fewbits.cli.jobs import demo as showcase
from fewbits.report import Comparison
from fewbits.search import Sweep
from pages import SVG, Parsed, check_picture, labels

MODEL = "builtin:digits-mlp"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def page(path="r.html") -> Parsed:
    parsed = Parsed(Path(path).read_text(encoding="utf-8"))
    for picture in parsed.pictures:
        check_picture(picture)
    return parsed


def test_compress_reports_what_it_prints():
    given = ("compress", MODEL, "--method", "nearest", "--bits", 4, "-o", "a.fewbits")
    result = run(*given, "--report", "r.html")
    *summary, last = result.stdout.splitlines()
    parsed = page()
    assert last == "report: r.html"
    assert " ".join(" ".join(summary).split()) in parsed.text
    assert "random initial weights" in parsed.text  # the note on standard error
    for told in ("method=nearest, bits=4", "biases are kept"):
        assert told in parsed.text
    size = fewbits.inspect("a.fewbits").report
    told = {f"{r.bytes:,} ({100 * r.bytes / size.file_bytes:.1f}%)" for r in size.rows}
    assert told <= set(labels(parsed.pictures[0]))
    assert run_json(*given, "--force", "--report", "r.html")["report"] == "r.html"


def test_a_search_reports_its_curve():
    given = ("--target-bytes", "4KB", "--evaluations", 3, "--selection", "digits")
    told = run_json("compress", MODEL, "--data", "digits", *given, "-o", "a.fewbits", "--report",
                    "r.html")  # fmt: skip
    curve = page().pictures[0]
    marks = [one for one in curve.iter(f"{SVG}path") if one.get("transform")]
    assert len(marks) == len(told["trace"]["trials"]) + 1
    assert {"bytes of the whole file", "accuracy"} <= set(labels(curve))


def test_a_plan_and_its_warning_are_reported():
    run("compress", MODEL, "--dry-run", "--report", "r.html", "--method", "nearest")
    assert "biases are kept" in page().text


def test_a_warning_is_reported(monkeypatch):
    monkeypatch.setattr("fewbits.coded.Coverage.warning", "less than half, it says")
    run("compress", MODEL, "--dry-run", "--report", "r.html", "--method", "nearest")
    assert "Warnings less than half, it says" in page().text


def test_sweep_and_sensitivity_report_their_points():
    given = ("--data", "digits", "--calibration-samples", 64, "--report", "r.html")
    told = run_json("sweep", MODEL, *given, "--methods", "nearest", "--bits", "3,5", "-o", "s.json")
    curve = page().pictures[0]
    marks = [one for one in curve.iter(f"{SVG}path") if one.get("transform")]
    assert len(marks) == len(told["points"]) + 1
    assert any(one.startswith("float32: ") for one in labels(curve))
    told = run_json("sensitivity", MODEL, *given, "--method", "nearest", "--bits", "2,4")
    (dots,) = page().pictures
    assert len(list(dots.iter(f"{SVG}path"))) == len(told["rows"]) + 2
    assert {row["name"] for row in told["rows"]} <= set(labels(dots))


def test_demo_reports_its_comparison(monkeypatch):
    rows = [
        Comparison("float32", None, 0.99, 4000, 32, 1, None, "a"),
        Comparison("nearest", 4, 0.98, 500, 4, 8, 1.0, "b.fewbits", 0.9),
    ]

    def compare(folder, seed, progress):
        fewbits.compress(nn.Linear(4, 4), "nearest").save(folder / "b.fewbits")
        return rows

    monkeypatch.setattr(showcase, "train", lambda *_: 1.0)
    monkeypatch.setattr(showcase, "compare", compare)
    run("demo", "--report", "r.html")
    assert "98.00%" in page().text


def test_training_reports_its_epochs():
    pytest.importorskip("lightning_fabric")
    given = ("--method", "pwfn", "--epochs", 2, "-o", "a.fewbits", "--report", "r.html")
    told = run_json("train", MODEL, "--data", "digits", *given)
    parsed = page()
    assert "Training" in parsed.text
    for epoch in told["training"]["history"]:
        assert all(f"{value:.6g}" in parsed.text for value in epoch.values())


@pytest.mark.parametrize("path", ["r.pdf", "missing/r.html"])
def test_a_report_that_cannot_be_written_is_refused_before_any_work(path, tmp_path):
    given = ("compress", MODEL, "--method", "nearest", "-o", "a.fewbits", "--report", path)
    assert "report" in one_line_error(*given)
    assert not (tmp_path / "a.fewbits").exists()


def test_results_write_reports_and_show_them_in_notebooks(tmp_path):
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    data = [torch.randn(64, 8)]
    coded = fewbits.compress(network, "gpfq", data)
    assert coded.report(tmp_path / "r.html") == (tmp_path / "r.html").stat().st_size
    assert "rule for '*' method=gpfq" in page().text
    coded.save("a.fewbits")
    fewbits.CodedModel.load("a.fewbits").report("r.html", "mine")
    assert page().text.startswith("mine")
    rows = fewbits.sensitivity(network, "nearest", data, (2, 3))
    rows.report("r.html")
    assert len(page().pictures) == 1
    assert Parsed(rows._repr_html_()).pictures
    found = fewbits.compress(network, "smallest", data, target_bytes=400,
                             evaluate=lambda net: float(net(data[0]).detach().mean()))  # fmt: skip
    shown = Parsed(found.trace._repr_html_())
    assert shown.pictures
    assert "score (higher is better)" in shown.text


def test_a_sweep_shows_and_reports_itself():
    point = {"settings": {"method": "gpfq", "bits": 3}, "goal": None, "bytes": 500, "score": 0.9}
    sweep = Sweep({"model": "m"}, {"bytes": 4000, "score": 0.95}, [point])
    assert Parsed(sweep._repr_html_()).pictures
    sweep.report("r.html")
    assert "gpfq bits=3" in page().text
    assert repr(sweep) == "<Sweep of 1 points: {'model': 'm'}>"
