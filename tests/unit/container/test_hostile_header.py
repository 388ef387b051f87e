"""Headers that an attacker would write, checksums and all: refused before anything is allocated."""

import copy
import tracemalloc

import numpy as np
import pytest

from fewbits.coded import (
    ActivationGrid,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    Layout,
    RawTensor,
    TransformTensor,
)
from fewbits.container import decode, encode, streams
from fewbits.container.header import dump_json
from fewbits.errors import CorruptFileError
from forging import forge, framed, header_of, index_of

LIMIT = 2**22


def f32(*values):
    return np.array(values, np.float32)


def example():
    rng = np.random.default_rng(7)
    index = rng.integers(-3, 4, (6, 8), np.int32)
    layout = Layout((6, 2, 4), (1, 0, 2))
    book = Codebook(f32(-1, 0, 1))
    tensors = {
        "a.w": GridTensor((6, 8), "float32", index, f32(0.1), f32(1.5)),
        "a.v": GridTensor((2, 24), "float16", index, f32(*range(1, 7)), f32(*range(6)), layout),
        "b.w": CodebookTensor((6, 8), "float32", abs(index) % 3, book, f32(2)),
        "b.t": TransformTensor(
            (6, 6),
            "float32",
            GridTensor((8, 6), "float32", np.ascontiguousarray(index.T), f32(1)),
            GridTensor((6, 8), "float32", index, f32(1)),
        ),
        "b.r": RawTensor((3, 2), "float32", np.arange(12, dtype=np.uint8), "float16"),
        "b.n": RawTensor((), "int64", np.zeros(8, np.uint8)),
    }
    grids = {"a": ActivationGrid(4, 0.1, signed=True)}
    return encode(Contents(tensors, {"z": "a.w"}, grids, {"k": [1, "x"]}))


FILE = example()
HEADER = header_of(FILE)
PAYLOAD = FILE[10 : index_of(FILE)[0]]


def rebuild(header, payload=PAYLOAD):
    return framed(header if isinstance(header, bytes) else dump_json(header), payload)


def test_the_rebuilt_file_is_the_file():
    assert rebuild(HEADER) == FILE


def changed(path, value):
    header = copy.deepcopy(HEADER)
    place = header
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return header


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["n"], {}),
        (["n", 1], "0a.w"),
        (["n", 1], "0" + "x" * 2000),
        (["n"], ["0a"] * 10),
        (["t", 0, 1], [6, 9]),
        (["t", 0, 1], [6, -8]),
        (["t", 0, 1], [6.0, 8]),
        (["t", 0, 1], [True, 48]),
        (["t", 0, 1], ["6", 8]),
        (["t", 0, 1], [6, 8] + [1] * 15),
        (["t", 0, 1], [2**62, 2**62]),
        (["t", 0, 1], [2**30, 2**18]),
        (["t", 0, 1], [10**60]),
        (["t", 0, 0], "x"),
        (["t", 0, 0], None),
        (["t", 0, 0], "c"),
        (["t", 0, 2, "o"], 1.5),
        (["t", 0, 2, "o"], 2**40),
        (["t", 0, 2, "o"], 2**25 + 1),
        (["t", 0, 2, "o"], ["r"]),
        (["t", 0, 2, "p"], "s"),
        (["t", 0, 2, "p"], 1),
        (["t", 0, 2, "q"], 1),
        (["t", 0, 2], []),
        (["t", 1, 2, "m"], [6, 9]),
        (["t", 1, 2, "m"], [48]),
        (["t", 1, 2, "m"], [-6, -8]),
        (["t", 1, 2, "d"], "int8"),
        (["t", 1, 2, "d"], ["float16"]),
        (["t", 1, 2, "l"], [[6, 8], [0, 0]]),
        (["t", 1, 2, "l"], [[6, 7], [0, 1]]),
        (["t", 1, 2, "l"], [[6, 8]]),
        (["t", 1, 2, "l"], [[2**40, 0], [0, 1]]),
        (["t", 2, 2, "b"], 1),
        (["t", 2, 2, "b"], -1),
        (["t", 3, 2, "b"], ["c", [6, 8]]),
        (["t", 3, 2, "b"], ["t", [6, 8]]),
        (["t", 3, 2, "b"], ["g", [48]]),
        (["t", 3, 2, "c"], ["r", [8, 6]]),
        (["t", 3, 2, "c"], ["g", [6, 8]]),
        (["t", 3, 2, "e"], 1),
        (["t", 3, 2, "e"], 2),
        (["t", 3, 1], [6, 7]),
        (["t", 4, 2, "s"], "float32"),
        (["t", 4, 2, "s"], "complex64"),
        (["t", 4, 2, "s"], "int16"),
        (["t", 4, 2], {"d": "int8", "s": "float16"}),
        (["t", 5, 2], {"d": "int64", "s": "float64"}),
        (["t", 5, 2], {"d": "float64", "s": "int64"}),
        (["t", 5, 2, "d"], "object"),
        (["t"], HEADER["t"][:-1]),
        (["b"], [0]),
        (["b"], [2**24 + 1]),
        (["b"], [4]),
        (["b"], []),
        (["a"], {"z": 6}),
        (["a"], {"z": -1}),
        (["a"], {"a.w": 0}),
        (["a"], {"z": "a.w"}),
        (["a"], []),
        (["q"], ["0a", "0b"]),
        (["g"], [1]),
        (["g"], [34]),
        (["v"], [0.0]),
        (["v"], [-1]),
        (["v"], ["x"]),
        (["v"], [1, 2]),
        (["m"], []),
        (["c"], HEADER["c"][:-1]),
        (["c"], []),
        (["c", 0], 9),
        (["c", 0], 2**16),
        (["c", 0], -1),
        (["c", 0], 0),
        (["c", 0], 3),
        (["c", 0], 4),
        (["c", 0], "2"),
        (["l"], HEADER["l"] + [0]),
        (["l"], HEADER["l"][:-1]),
        (["l", 0], 0),
        (["l", 1], 0),
        (["l", 0], HEADER["l"][0] + 1),
        (["l", 0], True),
        (["l", 0], -1),
        (["l", 0], 2**62),
        (["l", 0], 2**70),
        (["zz"], 1),
    ],
    ids=str,
)
def test_one_wrong_value(path, value):
    with pytest.raises(CorruptFileError) as caught:
        decode(rebuild(changed(path, value)))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", [b"[]", b"null", b"1", b'"x"', b"[" * 10_000_000, b'{"n":1}'])
def test_headers_that_are_no_table(text):
    with pytest.raises(CorruptFileError):
        decode(rebuild(text))


def test_an_alias_is_as_long_as_a_name_at_most():
    assert len(decode(rebuild(changed(["a"], {"é" * 512: 0}))).aliases) == 1
    for alias in ("z" * 1025, "é" * 513):
        with pytest.raises(CorruptFileError, match=r"alias.*too long"):
            decode(rebuild(changed(["a"], {alias: 0})))


def test_an_alias_that_is_not_unicode():
    text = dump_json(HEADER)
    assert "é" in decode(rebuild(text.replace(b'"z":', '"é":'.encode()))).aliases
    with pytest.raises(CorruptFileError, match=r"alias.*Unicode"):
        decode(rebuild(text.replace(b'"z":', rb'"\ud800":')))


@pytest.mark.parametrize("share", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_all_kinds_of_values_everywhere(share):
    """Every place of the header is given every kind of value; none may escape or allocate.

    Of a share of the values, neighbouring places get others.
    """
    values = [None, True, -1, 0, 1, 2, 7, 48, 2**31, 2**63, 1.5, "", "r", "s", "0", [], [0], {}]
    values += [[[]], {"d": "bool"}, "float16", [2**48] * 16, ["g", [2**24]], ["r", [2**40]]]
    refused = decoded = 0
    tracemalloc.start()
    for place, path in enumerate(list(walk(HEADER))):
        for value in values[place % share :: share]:
            try:
                decode(rebuild(changed(path, value)), max_decoded_bytes=LIMIT)
                decoded += 1
            except CorruptFileError:
                refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * LIMIT
    assert refused > 1000 // share
    assert decoded > 0


def walk(value, path=()):
    """Yield the path of every value inside ``value``."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield [*path, key]
        yield from walk(value[key], (*path, key))


@pytest.mark.parametrize("seed", range(3))
def test_random_surgery_on_the_header(seed):
    """Values copied over other values, deleted and repeated: right types in wrong places."""
    rng = np.random.default_rng(seed)
    paths = list(walk(HEADER))
    for _ in range(400):
        header = copy.deepcopy(HEADER)
        for _ in range(int(rng.integers(1, 3))):
            source, target = (paths[int(k)] for k in rng.integers(len(paths), size=2))
            try:
                operate(header, source, target, int(rng.integers(3)))
            except (KeyError, IndexError, TypeError, AttributeError):
                continue
        try:
            got = decode(rebuild(header), max_decoded_bytes=LIMIT)
        except CorruptFileError:
            continue
        for tensor in got.tensors.values():
            if not isinstance(tensor, RawTensor):
                with np.errstate(over="ignore"):
                    assert tensor.dequantize().shape == tensor.shape


def operate(header, source, target, kind):
    value, place = header, header
    for key in source:
        value = value[key]
    for key in target[:-1]:
        place = place[key]
    if kind == 0:
        place[target[-1]] = copy.deepcopy(value)
    elif kind == 1:
        del place[target[-1]]
    else:
        place.insert(target[-1], copy.deepcopy(value))


def test_a_bomb_of_constants_is_refused_before_it_goes_off():
    tracemalloc.start()
    bombs = (([1, 2**40], {}, 1), ([8, 2**23], {"p": "r"}, 8), ([2**24 + 2**17], {}, 9))
    for shape, options, chunks in bombs:
        header = {"n": ["0w"], "t": [["g", shape, options]]}
        data = forge(header | {"c": [0] * (chunks + 1)}, [b"\0"] * (chunks + 1))
        with pytest.raises(CorruptFileError, match="more than the limit"):
            decode(data)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [[2**48], [2**27, 2**21], [2**20, 2**28], [2**24, 2**24]])
def test_chunks_that_have_no_bytes_are_never_listed(shape):
    """Up to 2**27 of them, where the header gives as many lengths as it likes, or all 0."""
    for count in (1, 2, 100_000):
        lengths = [1] + [0] * (count - 1)
        header = {"n": ["0w"], "t": [["g", shape]], "c": [0] * count, "l": lengths}
        data = framed(dump_json(header), bytes(5))
        tracemalloc.start()
        with pytest.raises(CorruptFileError, match="chunks"):
            decode(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**21 + 100 * count


def test_lengths_beyond_the_file_are_refused_before_bodies_are_listed(monkeypatch):
    """300,000 chunks for one tensor, whose bodies are not in the file, or others'."""
    monkeypatch.setattr(streams, "Chunk", None)
    count = 300_000
    header = {"n": ["0w"], "t": [["g", [count, 2**21]]], "c": [0] * (count + 1)}
    data = framed(dump_json(header | {"l": [1] * (count + 1)}), bytes(5))
    with pytest.raises(CorruptFileError, match="bodies end at byte"):
        decode(data)
    monkeypatch.undo()
    data = framed(dump_json(header | {"l": [1] + [0] * count}), bytes(5))
    tracemalloc.start()
    with pytest.raises(CorruptFileError, match=r"rows 0 to 1 cannot share a body"):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * count


def test_a_bomb_of_names_is_refused():
    packed = ["0" + "x" * 500 + "." + "a"] + [f"1{k}" for k in range(200_000)]
    with pytest.raises(CorruptFileError, match=r"limit|too long"):
        decode(rebuild({"n": packed, "t": []}, b""), max_decoded_bytes=2**26)


def test_a_newer_codec_asks_for_a_newer_version():
    with pytest.raises(CorruptFileError, match=r"'a\.w'.*codec number 15.*Install a newer fewbits"):
        decode(rebuild(changed(["c", 0], 15)))
