"""Index matrices that share a body: read alone or together, itemised, and refused if forged."""

import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cpu_time import within
from fewbits.coded import Contents, GridTensor, RawTensor, TransformTensor
from fewbits.coding import CODECS, Layout
from fewbits.container import decode, encode, measure, read_lazily, read_tensor, streams, write
from fewbits.container.open_file import open_source
from fewbits.container.reader import LazyTensors, open_file
from fewbits.container.streams import CHECKSUM
from fewbits.errors import CorruptFileError
from forging import forge, header_of

CONSTANT, RAW, MIX = (CODECS[name].number for name in ("constant", "raw", "mix"))
RNG = np.random.default_rng(5)
ONE = np.ones(1, np.float32)


def layer(outputs, inputs):
    values = RNG.normal(0, 2, (outputs, inputs, 9))
    for tap in range(1, 9):
        values[..., tap] = 0.7 * values[..., tap - 1] + 0.5 * values[..., tap]
    index = np.rint(values).clip(-7, 7).astype(np.int32).reshape(outputs, -1)
    return GridTensor((outputs, inputs, 3, 3), "float32", index, ONE)


def flat(rows, columns):
    index = RNG.integers(-40, 41, (rows, columns), dtype=np.int32)
    return GridTensor((rows, columns), "float32", index, ONE)


CONTENTS = Contents(
    {
        "a": layer(8, 8),
        "bias": RawTensor((12,), "float32", np.arange(48, dtype=np.uint8)),
        "b": layer(12, 8),
        "none": GridTensor((0, 5), "float32", np.zeros((0, 5), np.int32), ONE),
        "c": layer(12, 12),
        "large": RawTensor((17_000,), "float32", RNG.normal(size=17_000).astype("<f4").view("u1")),
        "after": flat(7, 7),
    },
    {"tied": "b"},
)
DATA = encode(CONTENTS)
HEADER = header_of(DATA)


def bodies():
    """Return the bodies of DATA as `forge` has them."""
    found = iter(DATA[span.start : span.end] for span in open_file(DATA).spans)
    return [next(found) if length else None for length in HEADER["l"]]


def same_index(tensor, name):
    np.testing.assert_array_equal(tensor.index, CONTENTS.tensors[name].index)
    assert tensor.index.dtype == np.int32


def test_neighbours_share_a_body_at_the_place_of_the_first():
    spans = open_file(DATA).spans
    assert [chunk.stream.parts[0].name for chunk in spans[0].chunks] == ["a", "b", "c"]
    assert spans[0].codec == MIX
    assert [chunk.layout for chunk in spans[0].chunks] == [
        Layout(8, 72, 9, 3),
        Layout(12, 72, 9, 3),
        Layout(12, 108, 9, 3),
    ]
    assert HEADER["c"][:3] == [MIX] * 3
    assert [bool(length) for length in HEADER["l"]] == [True, False, False, *[True] * 4]
    assert len(DATA) < len(encode(CONTENTS, "fast"))
    assert forge({k: v for k, v in HEADER.items() if k != "l"}, bodies())[10:200] == DATA[10:200]


def test_a_file_with_a_shared_body_reads_as_without():
    for data in (DATA, encode(CONTENTS, "fast")):
        got = decode(data)
        assert list(got.tensors) == list(CONTENTS.tensors)
        for name in ("a", "b", "c", "none", "after"):
            same_index(got.tensors[name], name)
    assert encode(decode(DATA)) == DATA


def test_one_of_them_is_had_with_its_body_alone(tmp_path):
    path = tmp_path / "x.fewbits"
    write(DATA, path)
    same_index(read_tensor(path, "tied"), "b")
    asked = []

    def fetch(start, end):
        asked.append((start, end))
        return DATA[start:end]

    lazy = LazyTensors(open_source(fetch, len(DATA)))
    asked.clear()
    for name in ("b", "a", "c"):
        same_index(lazy[name], name)
    span = open_file(DATA).spans[0]
    assert asked.count((span.start, span.end + CHECKSUM)) == 1  # decoded once, the others kept
    with read_lazily(path) as (tensors, _):
        tensors.check()
        for name in ("c", "a", "a"):
            same_index(tensors[name], name)


def test_threads_that_need_one_body_decode_it_once():
    """The first to come decodes while the others wait, and then find their matrices held."""
    together, asked = threading.Barrier(3), []

    def fetch(start, end):
        asked.append((start, end))
        time.sleep(0.05)  # long enough for the others to come
        return DATA[start:end]

    lazy = LazyTensors(open_source(fetch, len(DATA)))
    lazy["bias"]
    asked.clear()

    def look_up(name):
        together.wait()
        return lazy[name]

    with ThreadPoolExecutor(3) as pool:
        for name, tensor in zip("abc", pool.map(look_up, "abc"), strict=True):
            same_index(tensor, name)
    span = open_file(DATA).spans[0]
    assert asked.count((span.start, span.end + CHECKSUM)) == 1


def test_the_shares_of_the_body_sum_to_it():
    report = measure(DATA)
    assert report.file_bytes == len(DATA)
    rows = {row.name: row for row in report.rows}
    span = open_file(DATA).spans[0]
    size = span.end - span.start + CHECKSUM
    assert sum(rows[name].payload for name in "abc") == size
    assert rows["a"].payload == size * 576 // (576 + 864 + 1296)
    assert {rows[name].codecs for name in "abc"} == {"mix"}


def test_the_parts_of_a_transform_share_too():
    smooth = [layer(8, 8).index, layer(8, 8).index, layer(8, 8).index]
    left = GridTensor((8, 72), "float32", smooth[0], ONE)
    right = GridTensor((72, 8), "float32", np.ascontiguousarray(smooth[1].T), ONE)
    tensors = {"t": TransformTensor((8, 8), "float32", right, left), "w": layer(8, 8)}
    data = encode(Contents(tensors), "smallest")
    found = decode(data).tensors["t"]
    np.testing.assert_array_equal(found.coefficients.index, right.index)
    np.testing.assert_array_equal(found.basis.index, left.index)
    assert measure(data).file_bytes == len(data)


def changed(**more):
    """Return DATA with some chunks of another (codec, body); None for a body that is shared."""
    codecs, found = list(HEADER["c"]), bodies()
    for place, (codec, body) in more.items():
        codecs[int(place[1:])], found[int(place[1:])] = codec, body
    header = {key: value for key, value in HEADER.items() if key != "l"}
    return forge(header | {"c": codecs}, found)


GROUP = bodies()[0]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (changed(_0=(MIX, None)), "first chunk has no body"),
        (changed(_1=(RAW, None)), "'b' cannot share"),
        (changed(_2=(CONSTANT, None)), "'c' cannot share"),
        (changed(_0=(RAW, GROUP), _1=(RAW, None), _2=(RAW, None)), "share a stream of 'raw'"),
        (changed(_0=(2, GROUP), _1=(2, None), _2=(2, None)), "share a stream of 'rans'"),
        (changed(_0=(4, GROUP), _1=(4, None), _2=(4, None)), "share a stream of 'planes'"),
        (changed(_0=(77, GROUP), _1=(77, None), _2=(77, None)), "'a'.*Install the package"),
        (changed(_3=(MIX, None)), r"values of 'large'.* cannot share|'a' cannot share"),
        (changed(_4=(MIX, None)), "cannot share"),  # 'after' and a raw tensor before it
        (changed(_5=(MIX, None)), "cannot share"),  # the side stream
        (changed(_6=(MIX, None)), "cannot share"),  # a group of small tensors
        (changed(_1=(MIX, b"\0")), "damaged|hold at most"),  # a body of its own, and 'c' shares it
        (changed(_0=(MIX, GROUP[:-9])), "damaged"),
        (changed(_0=(MIX, GROUP + bytes(9))), "damaged"),
    ],
)
def test_bodies_that_are_shared_wrongly_are_refused(data, error):
    with pytest.raises(CorruptFileError, match=error):
        decode(data)


def test_a_chunk_of_several_shares_nothing(monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 500)
    for entries in (["g", [40, 50]], ["g", [3, 5]]), (["g", [3, 5]], ["g", [40, 50]]):
        count = [4 if entry[1][0] == 40 else 1 for entry in entries]
        found = [b"\1\2\3"] + [None] * (sum(count) - 1) + [b"\0"]
        codecs = [MIX] * sum(count) + [CONSTANT]
        with pytest.raises(CorruptFileError, match=r"rows 0 to 10 cannot share"):
            decode(forge({"n": ["0a", "0b"], "t": list(entries), "c": codecs}, found))
        separate = [b"\1\2\3"] * sum(count) + [b"\0"]
        with pytest.raises(CorruptFileError, match="damaged"):
            decode(forge({"n": ["0a", "0b"], "t": list(entries), "c": codecs}, separate))


def _many(count, shape, body):
    names = [f"0{place:x}" for place in range(count)]
    header = {"n": names, "t": [["g", shape]] * count, "c": [MIX] * count + [CONSTANT]}
    return forge(header, [body, *[None] * (count - 1), b"\0"])


def test_a_body_of_more_than_a_million_symbols_is_not_shared():
    with pytest.raises(CorruptFileError, match=r"cannot share.* at most 1048576 symbols together"):
        decode(_many(3, [1024, 512], bytes(700)), max_decoded_bytes=1 << 40)


def test_a_bomb_of_shared_matrices_is_refused_before_it_is_decoded():
    """Each entry of the header stands for many symbols, which no byte of the body tells."""
    data = _many(16, [256, 256], b"\x40\0\2\1\1")
    with pytest.raises(CorruptFileError, match="more than the limit"):
        decode(data, max_decoded_bytes=1 << 20)
    with pytest.raises(CorruptFileError, match="hold at most"):
        decode(data, max_decoded_bytes=1 << 30)


def test_thousands_that_share_a_body_take_time_in_proportion():
    count = 3000
    matrices = [np.ones((1, 1), np.int32)] * count
    matrices[0] = np.zeros((1, 1), np.int32)
    body = CODECS["mix"].encode_group(matrices, [Layout(1, 1)] * count)
    data = _many(count, [1], body)
    with within(3):
        assert len(decode(data).tensors) == count
    tracemalloc.start()
    lazy = LazyTensors(open_source(lambda start, end: data[start:end], len(data)))
    assert lazy[f"{count // 2:x}"].index.tolist() == [[1]]
    assert tracemalloc.get_traced_memory()[1] < 5000 * count
    tracemalloc.stop()
