"""Files written and read with several processes: the same bytes, values and errors."""

import zlib

import numpy as np
import pytest

import fewbits
from fewbits.coded import Codebook, CodebookTensor, Contents, GridTensor, RawTensor, TransformTensor
from fewbits.coding import EFFORTS, cut
from fewbits.container import decode, encode, read, read_lazily, write
from fewbits.container.opened import open_source
from fewbits.engine.bridge import to_torch
from fewbits.errors import ConfigError, CorruptFileError

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Cut matrices into blocks of about 2,000 symbols: in this process, which alone cuts."""
    monkeypatch.setattr(cut, "SYMBOLS", 2000)
    monkeypatch.setattr(cut, "ROWS", 16)


def grid(rows, columns, spread=2.0):
    scale = spread * np.exp(0.5 * RNG.normal(size=(rows, 1)))
    index = np.rint(scale * RNG.normal(size=(rows, columns))).clip(-500, 500).astype(np.int32)
    return GridTensor((rows, columns), "float32", index, RNG.random(rows).astype(np.float32) + 0.1)


def raw(size):
    return RawTensor((size,), "float32", RNG.normal(size=size).astype("<f4").view(np.uint8).copy())


BOOK = Codebook(np.array([-1, 0, 0.5, 2], np.float32))
CONTENTS = Contents(
    {
        "first": grid(40, 50),
        "cut": grid(90, 60),
        "cut.wide": grid(64, 70, 200.0),
        "book": CodebookTensor(
            (100, 30), "float32", RNG.integers(0, 4, (100, 30)).astype(np.int32), BOOK
        ),
        "empty": GridTensor((0, 5), "float32", np.zeros((0, 5), np.int32), np.ones(1, np.float32)),
        "transform": TransformTensor((12, 20), "float32", grid(6, 20), grid(12, 6)),
        "bias": raw(40),
        "large": raw(17_000),
        "last": grid(33, 9),
    },
    {"tied": "first"},
)
FILES = {}


def file(effort="smallest"):
    if effort not in FILES:
        FILES[effort] = encode(CONTENTS, effort)
    return FILES[effort]


def values(tensor):
    return to_torch(tensor).numpy().tobytes()


def dequantized(tensors):
    return {name: values(tensor) for name, tensor in tensors.items()}


WANTED = dequantized(CONTENTS.tensors)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("effort", list(EFFORTS))
def test_the_bytes_are_the_same(effort, workers):
    assert encode(CONTENTS, effort, workers) == file(effort)


def test_large_matrices_are_blocks():
    data = file()
    opened = open_source(lambda start, end: data[start:end], len(data))
    assert opened.version == (1, 2)
    blocks = [span.stream.label for span in opened.spans if span.codec == 9]
    assert "the index of 'cut'" in blocks


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("effort", list(EFFORTS))
def test_the_values_are_the_same(effort, workers, tmp_path):
    path = tmp_path / "net.fewbits"
    write(file(effort), path)
    assert dequantized(decode(file(effort), workers=workers).tensors) == WANTED
    assert dequantized(read(path, workers=workers).tensors) == WANTED
    loaded = fewbits.load(path, workers=workers)
    assert {name: value.numpy().tobytes() for name, value in loaded.items()} == {
        **WANTED,
        "tied": WANTED["first"],
    }
    with read_lazily(path, workers=workers) as (tensors, _):
        tensors.check()  # twice: what it holds need not be decoded again
        assert dequantized(tensors) == WANTED
        order = ["last", "first", "large", "cut", "bias", "first"]
        assert [values(tensors[name]) for name in order] == [WANTED[name] for name in order]


def damaged(name):
    """Return the file with a damaged stream whose checksum is right."""
    data = bytearray(file())
    opened = open_source(lambda start, end: bytes(data[start:end]), len(data))
    span = next(s for s in opened.spans if s.stream.label == f"the index of {name!r}")
    data[span.start : span.end] = b"\x7f" * (span.end - span.start)
    crc = zlib.crc32(data[span.start : span.end])
    data[span.end : span.end + 4] = crc.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("name", ["first", "cut", "last"])
def test_the_errors_are_the_same(name):
    messages = set()
    for workers in (1, 2):
        with pytest.raises(CorruptFileError, match=f"the index of '{name}'.*is damaged") as found:
            decode(damaged(name), workers=workers)
        messages.add(str(found.value))
    assert len(messages) == 1


def test_a_block_that_is_damaged_is_found_in_a_worker():
    data = bytearray(file())
    opened = open_source(lambda start, end: bytes(data[start:end]), len(data))
    span = next(s for s in opened.spans if s.stream.label == "the index of 'cut'")
    data[span.end - 40 : span.end] = bytes(40)
    crc = zlib.crc32(data[span.start : span.end])
    data[span.end : span.end + 4] = crc.to_bytes(4, "little")
    for workers in (1, 2):
        with pytest.raises(CorruptFileError, match=r"the index of 'cut'.*is damaged"):
            decode(bytes(data), workers=workers)


def test_wrong_numbers_of_workers_are_refused(tmp_path):
    write(file(), tmp_path / "net.fewbits")
    for call in (
        lambda: encode(CONTENTS, "fast", -1),
        lambda: decode(file(), workers=1000),
        lambda: fewbits.load(tmp_path / "net.fewbits", workers=-1),
    ):
        with pytest.raises(ConfigError, match="workers must be an integer"):
            call()
