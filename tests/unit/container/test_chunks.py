"""Large matrices are coded in chunks of whole rows, each on its own: read alone, checked alone."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from fewbits.coded import Codebook, CodebookTensor, Contents, GridTensor, RawTensor, TransformTensor
from fewbits.coding import EFFORTS, Layout
from fewbits.container import decode, encode, inspect, measure, read_tensor, streams, write
from fewbits.container import open_file as opened
from fewbits.container.files import _fetch_from
from fewbits.container.open_file import open_source
from fewbits.container.reader import LazyTensors, open_file
from fewbits.container.streams import CHECKSUM, chunks
from fewbits.errors import CorruptFileError
from forging import forge

RNG = np.random.default_rng(9)
ONE = np.ones(1, np.float32)


@pytest.fixture
def small(monkeypatch):
    """Chunks of 2000 symbols."""
    for module in (streams, opened):
        monkeypatch.setattr(module, "CHUNK", 2000)


def grid(rows, columns, shape=None):
    index = np.rint(RNG.laplace(0, 2, (rows, columns))).astype(np.int32)
    steps = RNG.random(rows).astype(np.float32) + 0.1
    return GridTensor(shape or (rows, columns), "float32", index, steps)


def raw(size):
    return RawTensor((size,), "float32", RNG.normal(size=size).astype("<f4").view(np.uint8).copy())


BOOK = Codebook(np.array([-1, 0, 0.5, 2], np.float32))
CONTENTS = Contents(
    {
        "small": grid(7, 9),
        "many": grid(90, 70),
        "wide": grid(3, 2500),
        "kernels": grid(160, 36, (160, 4, 3, 3)),
        "column": grid(4300, 1),
        "book": CodebookTensor(
            (64, 30), "float32", RNG.integers(0, 4, (64, 30)).astype(np.int32), BOOK
        ),
        "transform": TransformTensor((12, 90), "float32", grid(16, 90), grid(12, 16)),
        "constant": GridTensor((50, 40), "float32", np.full((50, 40), 3, np.int32), ONE),
        "bias": raw(1200),
        "large": raw(17_000),
        "last": grid(3, 3),
    },
    {"tied": "many"},
)


def same(got, wanted):
    for name, tensor in wanted.items():
        if isinstance(tensor, RawTensor):
            assert got[name].data.tobytes() == tensor.data.tobytes()
        elif isinstance(tensor, TransformTensor):
            same({"c": got[name].coefficients}, {"c": tensor.coefficients})
            same({"b": got[name].basis}, {"b": tensor.basis})
        else:
            np.testing.assert_array_equal(got[name].index, tensor.index)
            assert got[name].index.dtype == np.int32


@pytest.mark.parametrize("effort", EFFORTS)
def test_what_is_cut_comes_back(small, effort):
    data = encode(CONTENTS, effort, threads=1)
    found = decode(data)
    same(found.tensors, CONTENTS.tensors)
    assert encode(CONTENTS, effort, threads=3) == data
    same(decode(data, threads=3).tensors, CONTENTS.tensors)
    report = measure(data)
    assert report.file_bytes == len(data)
    names = {row.name: row.codecs for row in report.rows}
    assert names["constant"] == "constant"
    assert set(names["large"].split("+")) <= {"floats", "planes", "raw", "rans"}


def test_chunks_have_the_rows_that_the_format_tells(small):
    found = {}
    for span in open_file(encode(CONTENTS, "fast")).spans:
        for chunk in span.chunks:
            rows = found.setdefault(chunk.stream.parts[0].name + chunk.stream.parts[0].role, [])
            rows.append((chunk.first, chunk.stop))
    assert found["manyindex"] == [(0, 28), (28, 56), (56, 84), (84, 90)]
    assert found["wideindex"] == [(0, 1), (1, 2), (2, 3)]  # a row is never cut
    assert found["columnindex"] == [(0, 2000), (2000, 4000), (4000, 4300)]
    assert found["largeraw"][:2] == [(0, 500), (500, 1000)]
    assert found["smallindex"] == [(0, 7)]
    assert found["biasraw"][-1] == (1000, 1200)


def test_a_chunk_has_the_kernels_of_its_matrix(small):
    spans = open_file(encode(CONTENTS, "fast")).spans
    cut = [span.chunks[0] for span in spans if span.chunks[0].stream.parts[0].name == "kernels"]
    assert [chunk.layout for chunk in cut] == [Layout(55, 36, 9, 3)] * 2 + [Layout(50, 36, 9, 3)]


def test_real_chunks_have_two_million_symbols():
    for (rows, columns), most in (
        ((2**22, 4), 2**19),
        ((5, 2**21), 1),
        ((5, 2**21 + 1), 1),
        ((2**21, 1), 2**21),
        ((3, 700_000), 2),
    ):
        stream = streams.Stream("x", rows, columns, (streams.Part("x", "index", rows * columns),))
        found = list(chunks(stream))
        assert found[0].stop == min(most, rows)
        assert found[-1].stop == rows
        assert all(a.stop == b.first for a, b in pairwise(found))


def test_only_whole_matrices_share_a_body(monkeypatch):
    smooth = np.cumsum(np.cumsum(RNG.normal(size=(6, 12, 4, 9)), axis=3), axis=2)
    index = np.rint(smooth).clip(-7, 7).astype(np.int32).reshape(6, 12, 36)
    tensors = {f"w{k}": GridTensor((12, 4, 3, 3), "float32", m, ONE) for k, m in enumerate(index)}
    tensors["cut"] = GridTensor((72, 4, 3, 3), "float32", index.reshape(72, 36), ONE)
    monkeypatch.setattr(streams, "CHUNK", 500)
    data = encode(Contents(tensors), "smallest")
    spans = open_file(data).spans
    assert len(spans[0].chunks) == 6
    assert all(len(span.chunks) == 1 for span in spans[1:])
    same(decode(data).tensors, tensors)


def test_a_tensor_is_read_by_its_chunks_alone(small, tmp_path):
    data = encode(CONTENTS, "smallest")
    asked = []

    def fetch(start, end):
        asked.append((start, end))
        return data[start:end]

    file = open_source(fetch, len(data))
    asked.clear()
    LazyTensors(file)["many"]
    own = [
        (span.start, span.end + CHECKSUM)
        for span in file.spans
        if "many" in {part.name for part in span.chunks[0].stream.parts}
    ]
    assert asked == own
    assert len(own) > 4  # and the side stream
    write(data, tmp_path / "net")
    same({"many": read_tensor(tmp_path / "net", "tied")}, {"many": CONTENTS.tensors["many"]})


def test_damage_is_located_by_rows(small):
    data = bytearray(encode(CONTENTS, "fast"))
    span = next(span for span in open_file(bytes(data)).spans if "rows 28 to 56" in span.label)
    data[span.start] ^= 1
    with pytest.raises(CorruptFileError, match=r"index of 'many', rows 28 to 56 .*checksum"):
        decode(bytes(data))


def test_chunks_that_are_swapped_are_other_rows_and_fail(small):
    data = encode(CONTENTS, "fast")
    found = [s for s in open_file(data).spans if s.chunks[0].stream.parts[0].name == "wide"]
    first, second, _ = found
    swapped = data[: first.start] + data[second.start : second.end + 4]
    swapped += data[first.start : first.end + 4] + data[second.end + 4 :]
    assert first.end - first.start != second.end - second.start
    with pytest.raises(CorruptFileError, match="checksum"):
        decode(swapped)


@pytest.mark.parametrize("codec", range(5))
@pytest.mark.parametrize("size", [2**28, 2**40])
def test_a_row_that_is_too_long_is_refused_before_it_is_decoded(codec, size, tmp_path):
    header = {"n": ["0w"], "t": [["g", [1, size]]], "c": [codec, 0]}
    path = tmp_path / "net"
    path.write_bytes(forge(header, [b"\1" * 9000, b"\0"]))
    assert inspect(path).report.rows[0].elements == size
    tracemalloc.start()
    for use in (lambda: decode(path.read_bytes()), lambda: read_tensor(path, "w")):
        with pytest.raises(CorruptFileError, match="more than the limit"):
            use()
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_what_decoding_a_long_row_takes_counts(small):
    row = np.arange(4000, dtype=np.int32).reshape(1, -1) % 7
    data = encode(Contents({"w": GridTensor((4000,), "float32", row, ONE)}), "fast")
    with pytest.raises(CorruptFileError, match="more than the limit"):
        decode(data, max_decoded_bytes=4 * 4000 + 10_000)
    assert decode(data, max_decoded_bytes=24 * 4000 + 10_000).tensors["w"].index.size == 4000


def test_a_large_tensor_of_many_chunks_is_decoded_into_its_place(monkeypatch, tmp_path):
    monkeypatch.setattr(streams, "CHUNK", 1 << 14)
    index = RNG.integers(-8, 8, (800, 500), dtype=np.int32)
    tensors = {"w": GridTensor((800, 500), "float32", index, ONE)}
    write(encode(Contents(tensors), "fast"), tmp_path / "net")
    with (tmp_path / "net").open("rb") as file:
        lazy = LazyTensors(open_source(_fetch_from(file), (tmp_path / "net").stat().st_size))
        lazy["w"]
        tracemalloc.start()
        found = lazy["w"].index
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    np.testing.assert_array_equal(found, index)
    assert peak < 2.5 * index.nbytes


@pytest.mark.parametrize("effort", ["fast", "balanced", "smallest"])
def test_a_tensor_of_several_chunks_is_the_same_bytes_in_every_file(effort, small):
    shared = grid(90, 40)
    files = [encode(Contents({"before": grid(n, 9), "w": shared}), effort) for n in (3, 17)]
    bodies = []
    for data in files:
        opened = open_source(lambda start, end, data=data: data[start:end], len(data))
        spans = [s for s in opened.spans if s.chunks[0].stream.parts[0].name == "w"]
        bodies.append([opened.body(span) for span in spans])
    assert bodies[0] == bodies[1]
    assert len(bodies[0]) > 1
