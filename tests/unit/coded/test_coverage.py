"""How much of a network is quantized: counts, the largest of the rest, words for people."""

import json

import numpy as np
import pytest

from fewbits.coded import (
    FLOAT_DTYPES,
    RAW_DTYPES,
    WEIGHT_DTYPES,
    Coverage,
    GridTensor,
    RawTensor,
    SizeReport,
    SizeRow,
    html_table,
    shortened,
)

SIZES = {"a": 60, "b": 25, "c": 15}


def test_counts_and_the_largest_of_the_rest():
    found = Coverage.of(SIZES, {"b"}, {"a": "too wide", "c": "a vector"})
    assert (found.quantized, found.weights, found.share, found.low) == (25, 100, 0.25, True)
    assert (found.largest, found.largest_weights, found.reason) == ("a", 60, "too wide")
    text = "25.0% of 100 weights quantized, largest left in float a (60): too wide"
    assert str(found) == text
    assert found.warning == f"less than half of the network is compressed: {text}."
    assert Coverage.of_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("coded", "total", "low", "percent"),
    [
        (50, 100, False, "50.0%"),
        (49_999, 100_000, True, "49.9%"),
        (99_999, 100_000, False, "99.9%"),
        (7, 7, False, "100.0%"),
        (0, 7, True, "0.0%"),
    ],
)
def test_half_is_enough_and_all_is_all(coded, total, low, percent):
    found = Coverage.of({"x": coded, "y": total - coded}, {"x"})
    assert (found.low, found.percent, bool(found.warning)) == (low, percent, low)
    assert Coverage.of_dict(found.to_dict()) == found


def test_nothing_at_all():
    found = Coverage.of({}, set())
    assert (found.share, found.low, found.largest) == (1.0, False, "")
    assert found.to_dict()["largest_left"] is None


def test_integers_are_no_weights():
    grid = GridTensor((2, 2), "float32", np.zeros((2, 2), np.int32), np.ones(1, np.float32))
    count = RawTensor((1000,), "int32", np.zeros(4000, np.uint8))
    bias = RawTensor((2,), "bfloat16", np.zeros(4, np.uint8))
    found = Coverage.of_tensors({"w": grid, "ids": count, "b": bias}, {"b": "biases are kept"})
    assert (found.quantized, found.weights, found.largest) == (4, 6, "b")


def test_a_report_tells_it_in_every_form():
    rows = (
        SizeRow("w", "transform", (4, 5), "static", 20, 80, 10, 2),
        SizeRow("<b>", "raw", (40,), "raw", 40, 160, 160, 0),
        SizeRow("ids", "raw", (900,), "raw", 900, 3600, 10, 0, "int32"),
        SizeRow("(header)", "file", (), "", 0, 0, 0, 30, ""),
    )
    report = SizeReport(rows, {"<b>": "kept & well"})
    text = "33.3% of 60 weights quantized, largest left in float <b> (40): kept & well"
    assert str(report).endswith(text)
    assert text in repr(report)
    assert "&lt;b&gt; (40): kept &amp; well" in report._repr_html_()
    assert "<b>" not in report._repr_html_().replace("<b></b>", "")
    assert report.to_dict()["quantized"]["largest_left"]["name"] == "<b>"
    assert repr(SizeReport(rows * 500)).count("\n") == 0


@pytest.mark.parametrize(
    "text", ["x", "x" * 5000, "\x1b" * 5000, "a\nb" * 999, "\u202ex", "é" * 99]
)
def test_names_are_shortened_and_harmless(text):
    short = shortened(text)
    assert len(short) <= 60
    assert short.isprintable()
    assert short[0] in (text[0], "\\")


def test_tables_escape_whatever_they_show():
    evil = "</table><script>alert('x')</script>\x1b[2J\u202e"
    shown = html_table((evil,), [(evil,)] * 700, title=evil, footer=evil)
    assert "<script>" not in shown
    assert shown.count("</table>") == 1
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "and 200 more rows" in shown
    assert shown.count("<tr>") == 501


@pytest.mark.parametrize("dtype", sorted(set(RAW_DTYPES) - set(FLOAT_DTYPES)))
def test_what_is_floating_or_complex_is_a_weight(dtype):
    raw = RawTensor((10,), dtype, np.zeros(10 * RAW_DTYPES[dtype], np.uint8))
    assert (dtype in WEIGHT_DTYPES) == dtype.startswith(("float", "complex"))
    assert Coverage.of_tensors({"a": raw}).weights == 10 * (dtype in WEIGHT_DTYPES)
    row = SizeRow("a", "raw", (10,), "", 10, 10, 10, 0, dtype)
    assert SizeReport((row,)).coverage.weights == 10 * (dtype in WEIGHT_DTYPES)
