"""Files read tensor by tensor: the same tensors, no other bytes, little memory."""

import io
import tracemalloc
from collections import Counter

import numpy as np
import pytest

import fewbits.container.lazy as lazy_module
from fewbits.coded import (
    ActivationGrid,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    RawTensor,
    TransformTensor,
)
from fewbits.coding import CODECS
from fewbits.container import decode, encode, read_lazily, read_tensor, write
from fewbits.container.files import _fetch_from
from fewbits.container.lazy import LazyTensors
from fewbits.container.opened import open_source
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
    assert set(file.counts) == set(range(opened.payload_start))
    tensors[name]
    expected = set(range(opened.payload_start))
    for span in opened.spans:
        roles = {part.role for part in span.stream.parts if part.name == name}
        if name.startswith("book"):
            roles |= {part.role for part in span.stream.parts} & {"levels"}
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
    place = {span.stream.parts[0].name: span.start for span in opened.spans[:4]}
    damaged = bytearray(DATA)
    damaged[place["0"] + 5] ^= 1
    (tmp_path / "net").write_bytes(damaged)
    _assert_same(read_tensor(tmp_path / "net", "book"), CONTENTS.tensors["book"])
    with pytest.raises(CorruptFileError, match=r"net: the index of '0'.*checksum"):
        read_tensor(tmp_path / "net", "0")
    with (
        pytest.raises(CorruptFileError, match="checksum"),
        read_lazily(tmp_path / "net") as (tensors, _),
    ):
        tensors["book"]


def test_the_limit_counts_only_what_is_decoded(path):
    read_tensor(path, "a.bias", max_decoded_bytes=40_000)
    with pytest.raises(CorruptFileError, match="limit"):
        read_tensor(path, "large", max_decoded_bytes=40_000)


@pytest.mark.parametrize("held", [0, 2500, 1 << 25])
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


def test_held_symbols_are_not_decoded_again(monkeypatch, path):
    calls = []
    for codec in ("constant", "raw", "static", "planes"):
        own = type(CODECS[codec])
        before = own.decode

        def count(self, *arguments, before=before):
            calls.append(self)
            return before(self, *arguments)

        monkeypatch.setattr(own, "decode", count)
    with read_lazily(path) as (tensors, _):
        tensors.check()
        seen = len(calls)
        assert seen > 0
        for name in tensors:
            tensors[name]
    assert len(calls) == seen


def test_a_file_that_shrinks_while_it_is_read_is_an_error():
    opened = open_source(_fetch_from(io.BytesIO(DATA[:-10])), len(DATA))
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
