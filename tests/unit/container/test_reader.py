"""Files read tensor by tensor: the same tensors, no other bytes, little memory."""

import io
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fewbits.container.reader as lazy_module
from fewbits.coded import (
    ActivationGrid,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    RawTensor,
    TransformTensor,
)
from fewbits.container import decode, encode, read_lazily, read_tensor, write
from fewbits.container.files import _fetch_from
from fewbits.container.open_file import OpenFile, open_source
from fewbits.container.reader import LazyTensors
from fewbits.errors import ConfigError, CorruptFileError

RNG = np.random.default_rng(0)
BOOK = Codebook(np.array([-1, 0, 0.5, 2], np.float32))


def _index(rows, columns, low=-8, high=8):
    return RNG.integers(low, high, (rows, columns), dtype=np.int32)


def _grid(rows, columns):
    steps = RNG.random(rows).astype(np.float32) + 0.1
    return GridTensor((rows, columns), "float32", _index(rows, columns), steps)


def _raw(size):
    values = RNG.normal(size=size).astype("<f4")
    return RawTensor((size,), "float32", values.view(np.uint8).copy())


CONTENTS = Contents(
    {
        "0": _grid(40, 50),
        "wide": GridTensor((9, 9), "float32", _index(9, 9, -70000, 70000), np.ones(1, np.float32)),
        "book": CodebookTensor((20, 30), "float32", _index(20, 30, 0, 4), BOOK),
        "book2": CodebookTensor((20, 30), "float32", _index(20, 30, 0, 4), BOOK),
        "transform": TransformTensor((12, 20), "float32", _grid(6, 20), _grid(12, 6)),
        "a.bias": _raw(40),
        "b.bias": _raw(30),
        "large": _raw(30_000),
        "empty": GridTensor((0, 5), "float32", _index(0, 5), np.ones(1, np.float32)),
    },
    {"tied": "0"},
    {"layer": ActivationGrid(8, 0.5, signed=True)},
)
DATA = encode(CONTENTS, "fast")


def _parts(tensor):
    if isinstance(tensor, RawTensor):
        return [tensor.data]
    if isinstance(tensor, TransformTensor):
        return [*_parts(tensor.coefficients), *_parts(tensor.basis)]
    if isinstance(tensor, CodebookTensor):
        return [tensor.index, tensor.scale, tensor.codebook.values]
    return [tensor.index, tensor.step, tensor.offset]


def _assert_same(got, wanted):
    assert type(got) is type(wanted)
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    for a, b in zip(_parts(got), _parts(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


class CountingFile(io.BytesIO):
    """Counts every byte that is read."""

    def __init__(self, data):
        super().__init__(data)
        self.counts = Counter()

    def read(self, size=-1):
        start = self.tell()
        piece = super().read(size)
        self.counts.update(range(start, start + len(piece)))
        return piece


@pytest.fixture
def path(tmp_path):
    write(DATA, tmp_path / "net.fewbits")
    return tmp_path / "net.fewbits"


@pytest.mark.parametrize("name", CONTENTS.tensors)
def test_one_tensor_is_the_same_as_in_the_whole(path, name):
    _assert_same(read_tensor(path, name), CONTENTS.tensors[name])


@pytest.mark.parametrize("name", CONTENTS.tensors)
def test_only_the_streams_of_the_tensor_are_read(name):
    file = CountingFile(DATA)
    opened = open_source(_fetch_from(file), len(DATA))
    tensors = LazyTensors(opened)
    frame = set(range(10)) | set(range(opened.payload_end, len(DATA)))
    assert set(file.counts) == frame
    tensors[name]
    expected = set(frame)
    for span in opened.spans:
        parts = [part for chunk in span.chunks for part in chunk.stream.parts]
        roles = {part.role for part in parts if part.name == name}
        if name.startswith("book"):
            roles |= {part.role for part in parts} & {"levels"}
        if roles - {"levels"} or (name.startswith("book") and roles):
            expected |= set(range(span.start, span.end + 4))
    assert set(file.counts) == expected
    assert max(file.counts.values()) == 1
    assert len(expected) < len(DATA)


def test_an_alias_reads_its_tensor_and_an_unknown_name_is_told(path):
    _assert_same(read_tensor(path, "tied"), CONTENTS.tensors["0"])
    with pytest.raises(ConfigError, match=r"no tensor 'bok'.*Did you mean 'book'"):
        read_tensor(path, "bok")


def test_damage_elsewhere_is_not_looked_at_and_damage_here_is_found(tmp_path):
    opened = open_source(lambda start, end: DATA[start:end], len(DATA))
    place = {span.chunks[0].stream.parts[0].name: span.start for span in opened.spans[:4]}
    damaged = bytearray(DATA)
    damaged[place["0"] + 5] ^= 1
    (tmp_path / "net").write_bytes(damaged)
    _assert_same(read_tensor(tmp_path / "net", "book"), CONTENTS.tensors["book"])
    with pytest.raises(CorruptFileError, match=r"net: the index of '0'.*checksum"):
        read_tensor(tmp_path / "net", "0")
    for threads in (1, 2):
        with read_lazily(tmp_path / "net", threads=threads) as (tensors, _):
            _assert_same(tensors["book"], CONTENTS.tensors["book"])
            with pytest.raises(CorruptFileError, match=r"the index of '0'.*checksum"):
                tensors["0"]
            _assert_same(tensors["book"], CONTENTS.tensors["book"])
            with pytest.raises(CorruptFileError, match="checksum"):
                tensors.check()


def test_the_limit_counts_only_what_is_decoded(path):
    read_tensor(path, "a.bias", max_decoded_bytes=40_000)
    with pytest.raises(CorruptFileError, match="limit"):
        read_tensor(path, "large", max_decoded_bytes=40_000)


@pytest.mark.parametrize("held", [0, 10_000, 1 << 25])
def test_checked_tensors_are_the_same_however_many_symbols_are_held(monkeypatch, path, held):
    monkeypatch.setattr(lazy_module, "HELD", held)
    with read_lazily(path) as (tensors, aliases):
        tensors.check()
        assert aliases == {"tied": "0"}
        for _ in range(2):
            for name, tensor in tensors.items():
                _assert_same(tensor, CONTENTS.tensors[name])
        assert tensors["book"].codebook is tensors["book2"].codebook
        assert tensors.shapes == {name: t.shape for name, t in CONTENTS.tensors.items()}


def test_what_tensors_share_is_decoded_once(monkeypatch, path):
    asked = []
    before = OpenFile.decode

    def count(self, span):
        asked.append(span.start)
        return before(self, span)

    monkeypatch.setattr(OpenFile, "decode", count)
    with read_lazily(path, threads=1) as (tensors, _):
        tensors.check()
        assert len(asked) == len(set(asked)) > 8
        asked.clear()
        for name in tensors:
            tensors[name]  # kept since it was checked
        assert not asked
        for name in tensors:
            tensors[name]
    own = [span.start for span in _open(DATA).spans if span.chunks[0].stream.is_own]
    assert asked == own


def test_threads_that_read_one_file_take_turns(tmp_path):
    """A file has one position: a seek of another thread must not come between seek and read."""

    class Slow(io.BytesIO):
        def seek(self, *where):
            found = super().seek(*where)
            time.sleep(0.001)
            return found

    rng = np.random.default_rng(2)
    tensors = {f"w{k}": _raw(17_000) for k in range(6)}
    data = encode(Contents(tensors), "fast")
    fetch = _fetch_from(Slow(data))
    with ThreadPoolExecutor(4) as pool:
        places = rng.integers(0, len(data), (200, 2))
        places.sort(axis=1)
        found = list(pool.map(lambda pair: fetch(*map(int, pair)), places))
    assert all(piece == data[a:b] for piece, (a, b) in zip(found, places.tolist(), strict=True))


def test_a_file_that_shrinks_while_it_is_read_is_an_error():
    file = io.BytesIO(DATA)
    opened = open_source(_fetch_from(file), len(DATA))
    file.truncate(opened.payload_end - 10)
    with pytest.raises(CorruptFileError, match="ended at byte"):
        opened.verify()


def test_decoding_one_by_one_holds_one_tensor():
    rng = np.random.default_rng(1)
    index = rng.integers(-8, 8, (500, 500), dtype=np.int32)
    tensors = {
        f"w{k}": GridTensor((500, 500), "float32", index, np.ones(1, np.float32)) for k in range(20)
    }
    data = encode(Contents(tensors), "fast")
    peaks = []
    for use in (decode, lambda data: [None for _ in LazyTensors(_open(data)).values()]):
        tracemalloc.start()
        use(data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > 20 * index.nbytes
    assert peaks[1] < 10 * index.nbytes


def _open(data):
    return open_source(lambda start, end: data[start:end], len(data))
