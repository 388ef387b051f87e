"""Files written tensor by tensor, in one pass, by a writer that holds little of them."""

import io
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.coded import ActivationGrid, Contents, GridTensor, RawTensor
from fewbits.coding import EFFORTS
from fewbits.container import FileWriter, decode, encode, limits, measure, write_contents, writer
from fewbits.container.reader import open_file
from fewbits.errors import ConfigError, CorruptFileError

RNG = np.random.default_rng(4)
ONE = np.ones(1, np.float32)


class Pipe:
    """Takes bytes, and can do nothing else: no seek, no tell, no read."""

    def __init__(self, keep=True):
        self.pieces, self.total, self.keep = [], 0, keep

    def write(self, data):
        self.total += len(data)
        if self.keep:
            self.pieces.append(bytes(data))
        return len(data)


def grid(rows, columns, spread=2.0):
    index = np.rint(RNG.laplace(0, spread, (rows, columns))).astype(np.int32)
    return GridTensor((rows, columns), "float32", index, ONE)


def raw(size):
    return RawTensor((size,), "float32", RNG.normal(size=size).astype("<f4").view(np.uint8).copy())


CONTENTS = Contents(
    {"a": grid(20, 30), "bias": raw(9), "b": grid(40, 50), "large": raw(20_000)},
    {"tied": "a"},
    {"a": ActivationGrid(8, 0.1, signed=True)},
    {"k": [1, "x"]},
)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_is_written_from_front_to_back(effort, threads):
    pipe = Pipe()
    length = write_contents(CONTENTS, pipe, effort, threads)
    data = b"".join(pipe.pieces)
    assert length == len(data) == pipe.total
    assert data == encode(CONTENTS, effort)
    assert list(decode(data).tensors) == list(CONTENTS.tensors)


def test_tensors_are_written_as_they_are_added():
    pipe, lengths = Pipe(), []
    with FileWriter(pipe, "fast", threads=1) as file:
        for name, tensor in CONTENTS.tensors.items():
            file.add(name, tensor)
            lengths.append(pipe.total)
        assert file.finish(CONTENTS.aliases, CONTENTS.activations, CONTENTS.metadata) == pipe.total
    assert lengths == sorted(lengths)
    assert lengths[-1] > 1000 > lengths[0]
    assert b"".join(pipe.pieces) == encode(CONTENTS, "fast")


def test_nothing_is_a_file_too():
    pipe = Pipe()
    with FileWriter(pipe) as file:
        file.finish({}, {}, {})
    found = decode(b"".join(pipe.pieces))
    assert [len(x) for x in (found.tensors, found.activations, found.metadata)] == [0, 0, 0]


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_does_not_grow_with_tensors(threads):
    size = 1 << 18

    def fill(count):
        with FileWriter(Pipe(keep=False), "fast", threads) as file:
            for place in range(count):
                file.add(f"w{place}", grid(512, size // 512))
                file.add(f"r{place}", raw(size // 4))
            file.finish({}, {}, {})

    fill(1)
    tracemalloc.start()
    fill(30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One tensor is being made, each of the calls that wait keeps one of 4 bytes a symbol, and
    # those that run take some 30 more.
    assert peak < (20 + 8 * 2 * threads + 40 * threads) * size < 30 * 5 * size * (1 + threads)


def test_what_cannot_be_written_is_refused():
    with FileWriter(Pipe()) as file:
        file.add("w", grid(2, 2))
        with pytest.raises(ConfigError, match="name must be a new one"):
            file.add("w", grid(2, 2))
        with pytest.raises(ConfigError, match="1024 bytes"):
            file.add("w" * 1025, grid(2, 2))
    with pytest.raises(ConfigError, match="effort must be one of fast, balanced, smallest"):
        FileWriter(Pipe(), "quick")
    with pytest.raises(ConfigError, match=r"effort must be one of.*\[1\]"):
        FileWriter(Pipe(), [1])
    with pytest.raises(ConfigError, match="threads must be an integer"):
        FileWriter(Pipe(), threads=-1)


class Narrow(Pipe):
    """As a raw file may, takes some of the bytes, and says how many."""

    def write(self, data):
        return super().write(bytes(data[:700]))


class Stuck(Pipe):
    def write(self, data):
        return None


def test_a_file_that_takes_some_bytes_is_given_the_rest():
    pipe = Narrow()
    assert write_contents(CONTENTS, pipe, "fast") == pipe.total
    assert b"".join(pipe.pieces) == encode(CONTENTS, "fast")
    with pytest.raises(OSError, match="accepts none"):
        write_contents(CONTENTS, Stuck(), "fast")


class FullDisk(Pipe):
    def write(self, data):
        if self.total > 1000:
            raise OSError("disk full")
        return super().write(data)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_the_file_passes(threads):
    with pytest.raises(OSError, match="disk full"):
        write_contents(CONTENTS, FullDisk(), "fast", threads)


def test_an_error_of_a_codec_passes(monkeypatch):
    def fail(*_):
        raise ValueError("inside")

    monkeypatch.setattr(writer, "encode_run", fail)
    for threads in (1, 2):
        with pytest.raises(ValueError, match="inside"):
            encode(CONTENTS, "fast", threads)


def smooth(count):
    values = np.cumsum(RNG.normal(size=(count, 1200, 9)), axis=2)
    index = np.rint(values).astype(np.int32).reshape(count, 100, 108)
    return {f"w{k}": GridTensor((100, 12, 3, 3), "float32", m, ONE) for k, m in enumerate(index)}


def test_slow_codecs_are_for_the_first_symbols_of_a_file(monkeypatch):
    monkeypatch.setattr(writer, "MAX_SHARED_SYMBOLS", 10_800)  # a run for each tensor
    tensors = smooth(4)

    def codecs(effort):
        rows = measure(encode(Contents(tensors), effort)).rows
        return [row.codecs for row in rows if row.kind == "grid"]

    assert codecs("balanced") == ["mix"] * 4
    monkeypatch.setitem(EFFORTS, "balanced", replace(EFFORTS["balanced"], symbols=22_000))
    assert codecs("balanced") == ["mix", "mix", "rans", "rans"]
    assert codecs("smallest") == ["mix"] * 4
    assert codecs("fast") == ["rans"] * 4


def test_the_bound_of_balanced_is_the_one_that_is_told():
    assert EFFORTS["balanced"].symbols == 14_000_000
    assert EFFORTS["smallest"].symbols > 1 << 60


def nearly_constant(rows, columns, seed, spread=1, rare=200):
    rng = np.random.default_rng(seed)
    hit = rng.random((rows, columns)) < 1 / rare
    return (hit * rng.integers(-spread, spread + 1, (rows, columns))).astype(np.int32)


def contents(matrices):
    return Contents(
        {f"l{k}.w": GridTensor(m.shape, "float32", m, ONE) for k, m in enumerate(matrices)}
    )


def scarce(patch, least):
    """Let readers allow little, so that small files show what happens to large ones."""
    patch.setattr(limits, "default_limit", lambda size: least + 256 * size)
    patch.setattr(writer, "RESERVE", 1 << 16)


@pytest.mark.parametrize("effort", ["balanced", "smallest"])
@pytest.mark.parametrize("together", [1, 1 << 20])
def test_slow_codecs_give_way_where_a_reader_would_refuse_the_file(monkeypatch, effort, together):
    monkeypatch.setattr(writer, "MAX_SHARED_SYMBOLS", together)
    matrices = [nearly_constant(60, 96, seed) for seed in range(6)]
    smaller = encode(contents(matrices), effort)
    with monkeypatch.context() as patch:
        scarce(patch, 1 << 19)
        data = encode(contents(matrices), effort)
        found = decode(data).tensors
        for k, matrix in enumerate(matrices):
            np.testing.assert_array_equal(found[f"l{k}.w"].index, matrix)
        with pytest.raises(CorruptFileError, match=r"units of work"):
            decode(smaller)
    assert len(smaller) < len(data)
    assert len(decode(smaller).tensors) == 6
    mixed = {span.codec for span in open_file(data).spans}
    assert 2 in mixed  # rans took over


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 400)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["fast", "balanced", "smallest"]),
    st.integers(0, 99),
)
def test_whatever_is_written_can_be_read(sizes, effort, seed):
    matrices = [
        nearly_constant(rows, columns, seed + k, spread, rare)
        for k, (rows, columns, spread, rare) in enumerate(sizes)
    ]
    with pytest.MonkeyPatch.context() as patch:
        scarce(patch, 1 << 18)
        found = decode(encode(contents(matrices), effort)).tensors
    for k, matrix in enumerate(matrices):
        np.testing.assert_array_equal(found[f"l{k}.w"].index, matrix)


def test_a_stream_is_written_whatever_was_read_before():
    file = io.BytesIO(b"before")
    file.seek(0, io.SEEK_END)
    write_contents(CONTENTS, file, "fast")
    assert file.getvalue() == b"before" + encode(CONTENTS, "fast")
