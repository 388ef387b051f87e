"""Tables: aligned plain text, nothing cut off, no control characters."""

from __future__ import annotations

import io

from rich.console import Console

from fewbits.coded import SizeReport, SizeRow
from fewbits.report import (
    Column,
    Comparison,
    Table,
    comparison_table,
    human_bytes,
    methods_table,
    plan_table,
    settings_table,
    show,
    size_table,
)

REPORT = SizeReport(
    (
        SizeRow("a.weight", "grid", (10, 100), "static", 1000, 4000, 400, 20),
        SizeRow("(header)", "file", (), "", 0, 0, 0, 80),
    )
)


def _shown(table, **settings):
    out = io.StringIO()
    show(table, Console(file=out, **settings))
    return out.getvalue()


def test_plain_text_is_aligned():
    table = Table((Column("name"), Column("n", True)), (("a", "1"), ("long", "1,000")), "T", "F")
    assert table.plain() == "T\nname      n\na         1\nlong  1,000\nF"


def test_a_pipe_gets_whole_names_in_any_width():
    name = "x" * 300
    text = _shown(Table((Column("name"),), ((name,),)), width=40)
    assert name in text
    assert "\x1b" not in text


def test_a_terminal_gets_every_character_folded():
    name = "".join(chr(97 + k % 26) for k in range(200))
    table = Table((Column("name"), Column("n", True)), ((name, "1"),), "title", "footer")
    text = _shown(table, force_terminal=True, width=40, color_system=None)
    assert name in "".join(line.split()[0] for line in text.splitlines() if line.split())
    assert "footer" in text


def test_control_characters_never_reach_the_terminal():
    table = Table((Column("name"),), (("evil\x1b[2Jname\n",),), "t\x07", "f\x1b")
    for settings in ({}, {"force_terminal": True, "color_system": None}):
        text = _shown(table, **settings)
        assert "\x1b[2J" not in text
        assert "\x07" not in text
        assert r"\x1b[2J" in text


def test_markup_in_names_is_no_markup():
    text = _shown(Table((Column("n"),), (("[red]x[/red]",),)), force_terminal=True)
    assert "[red]x[/red]" in text


def test_size_table_adds_up():
    lines = size_table(REPORT, "title").plain().splitlines()
    assert lines[0] == "title"
    assert lines[-2].split() == ["total", "100", "500"]
    assert lines[-1] == (
        "500 bytes, 4.000 bits per weight, 8.0x smaller than float32; 100.0% of 1,000 weights "
        "quantized"
    )
    assert lines[2].split() == [
        "a.weight",
        "grid",
        "10x100",
        "static",
        "1,000",
        "3.36",
        "20",
        "420",
    ]


def test_comparison_leaves_blank_what_does_not_apply():
    rows = [
        Comparison("float32", None, 0.99, 4000, 32.0, 1.0, None, "n.safetensors"),
        Comparison("gpfq", 4, 0.985, 500, 4.0, 8.0, 1.25, "gpfq.fewbits"),
    ]
    lines = comparison_table(rows).plain().splitlines()
    assert lines[1].split() == ["float32", "99.00%", "4,000", "32.00", "1.0x"]
    assert lines[2].split() == ["gpfq", "4", "98.50%", "500", "4.00", "8.0x", "1.2"]
    assert rows[1].to_dict()["file"] == "gpfq.fewbits"


def test_plan_names_method_settings_and_reasons():
    plan = {
        "recipe": {"prepare": ["fold_batchnorm"]},
        "weights": [
            {
                "name": "a.weight",
                "shape": [2, 3],
                "method": {"method": "gpfq", "bits": 3},
                "reason": "",
            },
            {"name": "b.weight", "shape": [4], "method": None, "reason": "no rule matches it"},
        ],
        "kept": {"a.bias": "biases are kept"},
        "aliases": {"c.weight": "a.weight"},
    }
    lines = plan_table(plan).plain().splitlines()
    assert lines[1].split() == ["a.weight", "2x3", "gpfq", "bits=3"]
    assert lines[2].split(maxsplit=3) == ["b.weight", "4", "keep", "no rule matches it"]
    assert lines[4].split(maxsplit=2) == ["c.weight", "tied", "same tensor as a.weight"]
    assert lines[-1] == "1 of 4 tensors are quantized; stages: fold_batchnorm"


def test_methods_and_settings():
    entry = {"name": "m", "needs": "both", "summary": "s", "paper": "p", "settings": {"bits": 4}}
    assert methods_table([entry]).plain().splitlines()[1].split() == ["m", "both", "s", "p"]
    row = settings_table({"levels": None}, {"levels": "how many"}).plain().splitlines()[1]
    assert row.split() == ["levels", "none", "how", "many"]


def test_human_bytes():
    assert human_bytes(9_999) == "9,999 bytes"
    assert human_bytes(15_926) == "15,926 bytes (15.9 kB)"
    assert human_bytes(12_000_000) == "12,000,000 bytes (12.0 MB)"
