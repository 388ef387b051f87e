"""Reports: complete, drawn within their pictures, safe, and small for large networks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from fewbits.coded import Coverage, GridTensor, SizeReport, SizeRow
from fewbits.errors import ConfigError
from fewbits.report import (
    Comparison,
    Page,
    Section,
    check_report,
    coded_report,
    comparison_report,
    sensitivity_report,
    sweep_report,
)
from fewbits.report.html.charts import Bar, Point, Series, bars, curve, dots, histogram
from fewbits.report.html.scale import Scale, spaced
from pages import SVG, Parsed, check_picture, labels, path_points

HOSTILE = "</title></svg><script>alert(1)</script>\"'&<b>\x1b[31m"


def tensor(index) -> GridTensor:
    index = np.asarray(index, dtype=np.int32)
    return GridTensor(index.shape, "float32", index, np.ones(1, np.float32))


def row(name, size, elements=64, kind="grid") -> SizeRow:
    shape = (8, elements // 8) if kind == "grid" else (elements,)
    return SizeRow(name, kind, shape, "rans", elements, 4 * elements, size, 3)


def network(count, name="layer{}.weight"):
    rng = np.random.default_rng(0)
    names = [name.format(place) for place in range(count)]
    tensors = {one: tensor(rng.integers(-7, 8, (8, 8))) for one in names}
    rows = [row(one, 20 + place) for place, one in enumerate(names)]
    return SizeReport((*rows, row("bias", 9, 8, "raw"))), tensors


def trial(size, score, chosen=False):
    return {"slope": 1e-4, "bytes": size, "bits_per_weight": 2.0, "score": score,
            "seconds": 1.0, "chosen": chosen}  # fmt: skip


TRACE = {
    "goal": {"kind": "max_drop", "limit": 0.01},
    "reference": 0.98,
    "ended": "found",
    "trials": [trial(9000, 0.97, True), trial(4000, 0.9), trial(500, math.nan)],
}
PLAN = {
    "recipe": {"rules": [{"match": "*", "method": "gpfq", "bits": 4}], "seed": 3},
    "weights": [
        {"name": "layer0.weight", "shape": [8, 8], "method": {"method": "gpfq"}, "reason": ""},
        {"name": "odd.weight", "shape": [8, 8], "method": None, "reason": "kept by rule 'odd'"},
    ],
    "kept": {"a.bias": "biases are kept", "b.bias": "biases are kept"},
    "aliases": {},
}


def test_a_report_has_all_of_a_compression():
    size, tensors = network(3)
    page = coded_report(
        size, tensors, title="net", facts={"data": "digits", "seed": None}, plan=PLAN,
        trace=TRACE, history=[{"epoch": 1, "loss": 0.25}], notes=["folded"], score="accuracy",
    )  # fmt: skip
    parsed = Parsed(page.html())
    for told in (
        f"{size.file_bytes:,} bytes", size.comparison, "digits", "method=gpfq, bits=4", "folded",
        "biases are kept 2 a.bias, ...", "kept by rule 'odd' 1 odd.weight", "loss 1 0.25",
        "1 trials without a finite value", "torch", "numpy", "Python",
    ):  # fmt: skip
        assert told in parsed.text, told
    assert "None" not in parsed.text
    search, sizes, *codes = parsed.pictures
    assert {"bytes of the whole file", "accuracy", "float32: 0.9800"} <= set(labels(search))
    assert labels(sizes)[2:].count("bytes") == 1
    assert len(codes) == 3
    for picture in parsed.pictures:
        check_picture(picture)


def test_names_with_markup_are_text():
    size, tensors = network(1, HOSTILE)
    plan = {**PLAN, "kept": {HOSTILE: HOSTILE}}
    page = coded_report(size, tensors, title=HOSTILE, facts={HOSTILE: HOSTILE}, plan=plan,
                        notes=[HOSTILE])  # fmt: skip
    parsed = Parsed(page.html())
    assert "script" not in parsed.tags
    assert parsed.text.count("alert(1)") >= 8
    harm = {"name": HOSTILE, "method": HOSTILE, "bits": 2, "bytes": 1, "saved": 1, "score": None,
            "layer_error": None, "mse": 1.0, "kl": 1.0, "harm": 1.0}  # fmt: skip
    assert "script" not in Parsed(sensitivity_report([harm], title=HOSTILE).html()).tags
    point = {"settings": {"method": HOSTILE}, "bytes": 5, "score": 0.5}
    sweep = {"key": {"model": HOSTILE}, "float": {"bytes": 9, "score": 1.0}, "points": [point]}
    assert "script" not in Parsed(sweep_report(sweep, title=HOSTILE).html()).tags


def test_bars_are_sorted_and_every_part_has_one():
    size, tensors = network(50)
    parsed = Parsed(coded_report(size, tensors, title="net", facts={}).html())
    short, whole, *_ = parsed.pictures
    names = [one for one in labels(whole) if one.startswith("layer") or one == "bias"]
    assert names == [f"layer{place}.weight" for place in reversed(range(50))] + ["bias"]
    assert [one for one in labels(short) if one.startswith("layer")] == names[:30]
    assert "All 51 parts" in parsed.text
    for picture in parsed.pictures:
        check_picture(picture)


def test_the_report_of_a_large_network_stays_small():
    size, tensors = network(1500, "model.layers.{}.mlp.experts.down_proj.weight")
    text = coded_report(size, tensors, title="net", facts={}).html()
    assert len(text) < 2_500_000
    parsed = Parsed(text)
    assert "Drawn are the 400 largest of 1,500 quantized tensors." in parsed.text
    assert len(parsed.pictures) == 2 + 400


def test_bars_have_the_lengths_of_their_values():
    rows = [Bar("a", 300, 100, "400"), Bar("b", 50, 0, "50")]
    parsed = Parsed(bars(rows, "bytes", ("codes", "side"), "sizes"))
    wide = [float(one.get("width")) for one in parsed.pictures[0].iter(f"{SVG}rect")][2:]
    assert wide[0] == pytest.approx(3 * wide[1], abs=0.02)
    assert wide[0] == pytest.approx(6 * wide[2], abs=0.1)
    assert wide[3] == 0


@pytest.mark.parametrize(
    "counts",
    [{0: 5}, {-1: 1, 1: 3}, {-200: 1, 5: 90, 3000: 2}, {k: 1 + k % 3 for k in range(-128, 128)}],
)
def test_histograms_have_all_codes(counts):
    (picture,) = Parsed(histogram(counts, "code", "codes of it")).pictures
    check_picture(picture)
    assert "code" in labels(picture)
    assert any(one.startswith("% of the weights") for one in labels(picture))
    (drawn,) = picture.iter(f"{SVG}path")
    tops = [y for _, y in path_points(drawn)[1::4]]
    spread = max(counts) - min(counts) + 1
    per_bar = -(-spread // 64)
    assert len(tops) == len({(code - min(counts)) // per_bar for code in counts})
    base = path_points(drawn)[0][1]
    heights = [base - top for top in tops]
    most = max(heights)
    shares: dict[int, int] = {}
    for code in sorted(counts):
        place = (code - min(counts)) // per_bar
        shares[place] = shares.get(place, 0) + counts[code]
    expected = [most * share / max(shares.values()) for share in shares.values()]
    assert heights == pytest.approx(expected, abs=0.11)


def test_curves_draw_every_point_in_its_place():
    points = [Point(1000, 0.5), Point(10_000, 0.9, chosen=True), Point(100_000, 0.95)]
    other = [Point(2000, 0.2)]
    drawn = curve([Series("a", points), Series("b", other)], "bytes", "score", "it",
                  reference=(0.97, "float32: 0.97"))  # fmt: skip
    (picture,) = Parsed(drawn).pictures
    check_picture(picture)
    assert {"bytes", "score", "a", "b", "float32: 0.97"} <= set(labels(picture))
    marks = [path_points(one)[0] for one in picture.iter(f"{SVG}path") if one.get("transform")]
    assert len(marks) == 4 + 2  # and those of the legend
    first, second, third = marks[:3]
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.2)
    assert first[1] - second[1] == pytest.approx(8 * (second[1] - third[1]), abs=1)
    (ring,) = picture.iter(f"{SVG}circle")
    assert (float(ring.get("cx")), float(ring.get("cy"))) == second


@pytest.mark.parametrize(
    "points",
    [
        [(500, 1.0)],
        [(500, 0.0)],
        [(9, -30.5), (9, -30.5)],
        [(10, 1e-9), (10**12, 1e9)],
        [(60_000, 0.9), (61_000, 0.9)],
    ],
)
def test_curves_of_odd_points_have_labelled_axes(points):
    drawn = curve([Series("a", [Point(*one) for one in points])], "bytes", "score", "it")
    (picture,) = Parsed(drawn).pictures
    check_picture(picture)
    assert sum(one[0].isdigit() or one[0] == "-" for one in labels(picture)) >= 2


def test_dots_have_a_row_for_each_weight_and_hollow_marks_for_zero():
    rows = [("a" * 80, {"2 bits": 1e-2, "4 bits": 0.0}), ("b", {"2 bits": 1e-5})]
    (picture,) = Parsed(dots(rows, ["2 bits", "4 bits"], "nats", "it")).pictures
    check_picture(picture)
    marks = list(picture.iter(f"{SVG}path"))[2:]
    assert [one.get("fill") == "none" for one in marks] == [False, True, False]
    (high,), (zero,), (low,) = map(path_points, marks)
    assert zero[0] < low[0] < high[0]
    assert zero[1] == high[1] < low[1]
    assert "a" * 80 in "".join(picture.itertext())


def test_labels_of_ticks_never_touch():
    scale = Scale(1.0, 1e6, 0, 100, log=True)
    placed = spaced(scale, scale.ticks(), lambda value: f"{value:,.0f}", 0, 110)
    ends = [(at - 3.35 * len(text), at + 3.35 * len(text)) for at, text in placed]
    assert all(one[1] < other[0] for one, other in pairwise(ends))
    assert placed


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.9), (-3, 5), (1e-9, 2e-9), (97.2, 98.9)])
def test_ticks_are_round_and_within(low, high):
    ticks = Scale(low, high, 0, 1).ticks()
    assert 3 <= len(ticks) <= 9
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)


def test_a_comparison_has_all_points_and_the_float_network():
    rows = [Comparison("float32", None, 0.99, 4000, 32, 1, None, "a"),
            Comparison("gpfq", 4, 0.98, 500, 4, 8, 1.0, "b", 0.9),
            Comparison("nearest", 4, 0.9, 490, 4, 8, 1.0, "c", 0.9)]  # fmt: skip
    page = comparison_report(rows, title="demo", facts={}, coverage=Coverage.of({}, set(), {}))
    (picture,) = Parsed(page.html()).pictures
    assert {"gpfq", "nearest", "float32: 99.00% in 4,000 bytes"} <= set(labels(picture))


def test_sections_without_content_are_left_out():
    page = Page("t", (Section("empty", ()), Section("full", ("text",))))
    text = Parsed(page.html()).text
    assert "empty" not in text
    assert text.endswith("full text")


def test_reports_are_html_files_in_a_folder_that_exists(tmp_path):
    for path, message in (
        (tmp_path / "report.pdf", "must end in .html"),
        (tmp_path / "no" / "report.html", "does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_report(path)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        check_report(tmp_path / "folder.html")
    target = tmp_path / "r.html"
    assert Page("t", ()).write(target) == target.stat().st_size
