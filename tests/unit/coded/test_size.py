"""The size report: sums, ratios, and a table whose columns line up."""

import json

import pytest

from fewbits.coded import SizeReport, SizeRow

ROWS = (
    SizeRow("w", "grid", (10, 10), "static", 100, 400, 40, 10),
    SizeRow("b", "raw", (10,), "planes", 10, 40, 35, 0),
    SizeRow("(header)", "file", (), "", 0, 0, 0, 15),
)


def test_totals_count_every_row():
    report = SizeReport(ROWS)
    assert report.file_bytes == 100
    assert report.float_bytes == 440
    assert report.weights == 100
    assert report.bits_per_weight == 8.0
    assert report.compression_ratio == pytest.approx(4.4)


def test_without_quantized_weights_all_values_count():
    assert SizeReport(ROWS[1:]).weights == 10


def test_an_empty_report_divides_by_nothing():
    report = SizeReport(())
    assert (report.file_bytes, report.bits_per_weight, report.compression_ratio) == (0, 0, 0)


def test_rows_give_bytes_and_bits():
    assert ROWS[0].bytes == 50
    assert ROWS[0].bits_per_element == 4.0
    assert ROWS[2].bits_per_element == 0.0


def test_to_dict_is_json_and_keeps_the_sum():
    values = json.loads(json.dumps(SizeReport(ROWS).to_dict()))
    assert sum(row["bytes"] for row in values["rows"]) == values["file_bytes"] == 100


def test_the_table_has_one_line_per_row_and_lines_up():
    lines = str(SizeReport(ROWS)).splitlines()
    assert len(lines) == len(ROWS) + 2
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[-1].startswith("100 bytes, 8.000 bits per weight, 4.4x")


def test_the_rate_says_what_it_divides_by_where_most_is_left_in_float():
    coded = SizeRow("a", "grid", (10,), "raw", 10, 40, 5, 0)
    left = SizeRow("b", "raw", (100,), "raw", 100, 400, 400, 0)
    assert SizeReport((coded,)).rate == "4.000 bits per weight"
    assert SizeReport((coded, left)).rate == "324.000 bits per quantized weight"
    assert "324.000 bits per quantized weight" in SizeReport((coded, left)).summary


@pytest.mark.parametrize(
    ("dtypes", "text"),
    [
        (["float32"], "4.0x smaller than float32"),
        (["float32", "int64"], "4.0x smaller than float32"),
        (["bfloat16"], "4.0x smaller than in bfloat16"),
        (["float64", "int64"], "4.0x smaller than in float64"),
        (["float32", "bfloat16"], "4.0x smaller than the network's own tensors"),
        (["int64"], "4.0x smaller than the network's own tensors"),
    ],
)
def test_the_ratio_says_what_it_compares_to(dtypes, text):
    rows = [SizeRow(name, "raw", (10,), "", 10, 40, 10, 0, name) for name in dtypes]
    assert SizeReport(tuple(rows)).comparison == text
    assert text in SizeReport(tuple(rows)).summary
