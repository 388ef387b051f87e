"""Names and JSON: what is written, by hand, and what is refused."""

import pytest

from fewbits.container.header import dump_json, pack_names, parse_json, unpack_names
from fewbits.errors import CorruptFileError


def test_names_are_front_coded_by_components():
    names = ["layer1.0.bn1.weight", "layer1.0.bn1.bias", "layer1.1.bn1.weight", "layer1", "fc"]
    assert pack_names(names) == [
        "0layer1.0.bn1.weight",
        "3bias",
        "11.bn1.weight",
        "0layer1",
        "0fc",
    ]
    assert list(unpack_names(pack_names(names), "x", 1000)) == names


def test_equal_blocks_leave_equal_text():
    blocks = [f"h.{block}.{leaf}" for block in range(3) for leaf in ("a.w", "a.b", "c.w")]
    packed = pack_names(blocks)
    assert packed[4:6] == packed[7:9] == packed[1:3]


@pytest.mark.parametrize(
    "names", [[""], ["", "a"], ["a.b", "a"], [".", ".."], ["a"], ["x." * 60 + "a", "x." * 60 + "b"]]
)
def test_names_round_trip(names):
    assert list(unpack_names(pack_names(names), "x", 10_000)) == names


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ("0a", "list"),
        ([""], "malformed"),
        ([1], "malformed"),
        (["Aa"], "malformed"),
        (["1a"], "malformed"),
        (["0a", "2b"], "malformed"),
        (["0a", "0a"], "twice"),
        (["0" + "x" * 1025], "too long"),
        (["0\ud800"], "not valid Unicode"),
        (["0aaaaaa", "1bbbbb"], "too long"),
    ],
)
def test_malformed_names_are_refused(packed, message):
    with pytest.raises(CorruptFileError, match=message):
        unpack_names(packed, "x", 15)


def test_json_is_canonical():
    assert dump_json({"b": [1.0, None], "a": "é\n"}) == '{"a":"é\\n","b":[1.0,null]}'.encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{}x", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"a":1,"a":2}', "twice"),
        (b"[NaN]", "NaN is not a number of JSON"),
        (b"[-Infinity]", "-Infinity is not a number of JSON"),
        (b"[1e999]", "overflows float64"),
        (b"[" + b"1" * 65 + b"]", "65 digits"),
        (b"[" * 10_000_000, "nested deeper"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper"),
        (b"]" * 100, "not JSON"),
        (b'"' + b"\\" * 1001, "not JSON"),
    ],
)
def test_json_that_we_never_write_is_refused(text, message):
    with pytest.raises(CorruptFileError, match=message):
        parse_json(text)


def test_brackets_inside_strings_are_no_nesting():
    assert parse_json(rb'["[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"[[{"]') == ["[" * 41 + '"[[{']
