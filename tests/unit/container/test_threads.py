"""Files written and read with several threads: the same bytes, values and errors."""

import threading
import zlib

import numpy as np
import pytest

import fewbits
from fewbits.coded import Codebook, CodebookTensor, Contents, GridTensor, RawTensor, TransformTensor
from fewbits.coding import EFFORTS
from fewbits.container import decode, encode, read, read_lazily, streams, threads, write
from fewbits.container.open_file import open_source
from fewbits.engine.layers.pack import to_torch
from fewbits.errors import ConfigError, CorruptFileError

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Cut matrices into chunks of about 2,000 symbols."""
    monkeypatch.setattr(streams, "CHUNK", 2000)


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


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("effort", list(EFFORTS))
def test_the_bytes_are_the_same(effort, threads):
    assert encode(CONTENTS, effort, threads) == file(effort)


def test_large_matrices_are_chunks():
    data = file()
    opened = open_source(lambda start, end: data[start:end], len(data))
    names = [span.chunks[0].stream.label for span in opened.spans]
    assert names.count("the index of 'cut'") == 3


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("effort", list(EFFORTS))
def test_the_values_are_the_same(effort, threads, tmp_path):
    path = tmp_path / "net.fewbits"
    write(file(effort), path)
    assert dequantized(decode(file(effort), threads=threads).tensors) == WANTED
    assert dequantized(read(path, threads=threads).tensors) == WANTED
    loaded = fewbits.load(path, threads=threads)
    assert {name: value.numpy().tobytes() for name, value in loaded.items()} == {
        **WANTED,
        "tied": WANTED["first"],
    }
    with read_lazily(path, threads=threads) as (tensors, _):
        tensors.check()  # twice: what it holds need not be decoded again
        assert dequantized(tensors) == WANTED
        order = ["last", "first", "large", "cut", "bias", "first"]
        assert [values(tensors[name]) for name in order] == [WANTED[name] for name in order]


def damaged(name):
    """Return the file with a damaged stream whose checksum is right."""
    data = bytearray(file())
    opened = open_source(lambda start, end: bytes(data[start:end]), len(data))
    span = next(s for s in opened.spans if f"the index of {name!r}" in s.label)
    data[span.start : span.end] = b"\x7f" * (span.end - span.start)
    crc = zlib.crc32(data[span.start : span.end])
    data[span.end : span.end + 4] = crc.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("name", ["first", "cut", "last"])
def test_the_errors_are_the_same(name):
    messages = set()
    for count in (1, 2):
        with pytest.raises(CorruptFileError, match=f"the index of '{name}'.*is damaged") as found:
            decode(damaged(name), threads=count)
        messages.add(str(found.value))
    assert len(messages) == 1


def test_wrong_numbers_of_threads_are_refused(tmp_path):
    write(file(), tmp_path / "net.fewbits")
    for call in (
        lambda: encode(CONTENTS, "fast", -1),
        lambda: decode(file(), threads=1000),
        lambda: fewbits.load(tmp_path / "net.fewbits", threads=-1),
    ):
        with pytest.raises(ConfigError, match="threads must be an integer"):
            call()


def test_no_thread_is_left_behind(tmp_path):
    before = threading.active_count()
    write(file(), tmp_path / "net.fewbits")
    decode(file(), threads=3)
    encode(CONTENTS, "fast", 3)
    with pytest.raises(CorruptFileError):
        decode(damaged("cut"), threads=3)
    with read_lazily(tmp_path / "net.fewbits", threads=3) as (tensors, _):
        tensors["first"]
    assert threading.active_count() == before


def test_calls_come_back_in_order_and_no_more_wait_than_threads_need():
    with threads.OrderedCalls(3) as calls:
        for number in range(6):
            assert not calls.is_full
            calls.submit(pow, number, 2)
        assert calls.is_full
        assert [calls.take() for _ in range(6)] == [0, 1, 4, 9, 16, 25]
        calls.submit(pow, 1, 2)
        calls.clear()
        assert len(calls) == 0
    with threads.OrderedCalls(1) as calls:
        calls.submit(int, "x")  # runs when it is taken
        assert calls.is_full
        with pytest.raises(ValueError, match="'x'"):
            calls.take()


def test_as_many_threads_as_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 3, 7}, raising=False)
    assert threads.usable_threads(0) == 3
    assert threads.usable_threads(5) == 5
    monkeypatch.delattr(threads.os, "sched_getaffinity")
    monkeypatch.setattr(threads.os, "cpu_count", lambda: None)
    assert threads.usable_threads(0) == 1
