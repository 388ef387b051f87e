"""The plot of a sweep: a specification that is data, and a package that draws it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fewbits.errors import ConfigError, MissingExtraError
from fewbits.report import check_plot, rate_chart, render

SWEEP = {
    "float": {"bytes": 400, "score": 0.9},
    "points": [
        {"settings": {"method": "gpfq", "bits": 2}, "goal": None, "bytes": 40, "score": 0.5},
        {"settings": {"method": "a"}, "goal": {"limit": 9.0}, "bytes": 9, "score": 0.4},
        {"settings": {"method": "a"}, "goal": {"limit": 1.0}, "bytes": None, "missed": "no"},
    ],
}


def test_the_chart_holds_every_point_that_was_met():
    chart = rate_chart(SWEEP)
    exact, lines = chart["layer"]
    assert lines["data"]["values"] == [
        {"method": "gpfq", "bytes": 40, "score": 0.5},
        {"method": "a to a size", "bytes": 9, "score": 0.4},
    ]
    assert exact["data"]["values"] == [{"score": 0.9}]
    json.dumps(chart)


def test_what_is_not_installed_or_not_a_plot(monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingExtraError, match=r"fewbits\[report\]"):
        check_plot(Path("a.png"))
    with pytest.raises(ConfigError, match=r"must end in one of \.png, \.svg, \.html"):
        check_plot(Path("a.pdf"))


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.html"])
def test_each_ending_has_its_form(monkeypatch, name):
    drawn = SimpleNamespace(
        vegalite_to_png=lambda vl_spec, scale: b"png " + vl_spec["title"].encode(),
        vegalite_to_svg=lambda vl_spec: "svg " + vl_spec["title"],
        vegalite_to_html=lambda vl_spec, bundle: "html " + vl_spec["title"],
    )
    monkeypatch.setitem(sys.modules, "vl_convert", drawn)
    check_plot(Path(name))
    told = render(rate_chart(SWEEP), Path(name))
    assert told.startswith(f"{name[2:]} Accuracy over bytes".encode())


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.html"])
def test_the_real_package_draws(name):
    pytest.importorskip("vl_convert")
    starts = {".png": b"\x89PNG", ".svg": b"<svg", ".html": b"<!DOCTYPE"}
    assert render(rate_chart(SWEEP), Path(name)).lstrip().startswith(starts[Path(name).suffix])
