"""What every registered codec must do, whatever it is."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.coding import (
    CODECS,
    EFFORTS,
    Bound,
    Layout,
    codec_of,
    decode_run,
    decode_symbols,
    encode_run,
    encode_symbols,
    register,
    runs,
)
from fewbits.errors import ConfigError, CorruptFileError

RNG = np.random.default_rng(3)


@st.composite
def matrices(draw):
    taps, width = draw(st.sampled_from([(1, 0), (1, 3), (4, 2), (9, 3), (5, 0), (6, 3)]))
    rows, inputs = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    columns = inputs * taps if taps > 1 else max(inputs, width)
    bound = draw(st.sampled_from([1, 2, 7, 127, 40_000, 2**31 - 1]))
    lowest = draw(st.sampled_from([0, -1, -bound, -(2**31) if bound > 2**30 else 5]))
    seed = draw(st.integers(0, 2**32 - 1))
    spread = draw(st.floats(0.01, 3))
    values = np.random.default_rng(seed).normal(0, spread * bound / 4, (rows, columns))
    values = np.clip(np.rint(values), lowest, min(lowest + bound, 2**31 - 1))
    return values.astype(np.int32), Layout(rows, columns, taps, width)


@pytest.mark.parametrize("name", CODECS)
@given(case=matrices())
@settings(max_examples=25, deadline=None)
def test_what_is_coded_comes_back(name, case):
    values, layout = case
    codec = CODECS[name]
    data = codec.encode(values, layout)
    if data is None:
        return
    back = codec.decode(data, layout)
    assert back.shape == values.shape
    assert np.array_equal(back, values)
    assert layout.size <= codec.bound.symbols_per_byte * len(data)
    assert codec.encode(values, layout, limit=len(data) - 1) is None
    bits = codec.measure(values, layout)
    assert bits is not None
    assert abs(bits / 8 - len(data)) <= 0.05 * len(data) + 24


@pytest.mark.parametrize("effort", EFFORTS)
@given(case=matrices())
@settings(max_examples=15, deadline=None)
def test_no_effort_takes_more_than_raw_fields(effort, case):
    values, layout = case
    name, data = encode_symbols(values, layout, effort)
    assert np.array_equal(decode_symbols(CODECS[name].number, data, layout), values)
    raw = CODECS["raw"].encode(values, layout)
    assert raw is None or len(data) <= len(raw)


@pytest.mark.parametrize("name", CODECS)
def test_codecs_declare_themselves(name):
    codec = CODECS[name]
    assert codec.name == name
    assert codec_of(codec.number) is codec
    assert codec.since >= (2, 0)
    assert codec.bound.memory(Layout(10, 10)) >= 400
    assert codec.bound.work(2) > codec.bound.work(1) > 0


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", [(300, 400), (1, 60_000), (60_000, 1), (20_000, 4)])
def test_decoding_stays_within_the_memory_declared(name, shape):
    codec, layout = CODECS[name], Layout(*shape)
    values = np.rint(RNG.laplace(0, 3, shape)).clip(-9, 9).astype(np.int32)
    if name == "planes":
        values = RNG.integers(0, 40, shape).astype(np.uint8)
    if name == "constant":
        values = np.full(shape, 7, np.int32)
    data = codec.encode(values, layout)
    if data is None:
        return
    codec.decode(data, layout)  # whatever is loaded once is loaded now
    tracemalloc.start()
    codec.decode(data, layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= codec.bound.memory(layout) + 3 * len(data) + 100_000


def test_numbers_and_names_are_never_used_twice():
    with pytest.raises(ValueError, match="registered already"):
        register(CODECS["rans"])


def test_an_unknown_number_and_an_unknown_effort_are_told():
    with pytest.raises(CorruptFileError, match="number 77, unknown"):
        decode_symbols(77, b"", Layout(1, 1))
    with pytest.raises(ConfigError, match="fast, balanced, smallest"):
        encode_symbols(np.zeros((1, 1), np.int32), Layout(1, 1), "quick")


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (3, 0)])
def test_empty_matrices(shape):
    layout = Layout(*shape)
    name, data = encode_symbols(np.zeros(shape, np.int32), layout)
    assert decode_symbols(CODECS[name].number, data, layout).shape == shape
    with pytest.raises(CorruptFileError):
        decode_symbols(CODECS[name].number, data + b"x", layout)


@pytest.mark.parametrize("layout", [(-1, 2), (2, 5, 2), (2, 6, 0), (2, 6, 1, 7)])
def test_layouts_that_no_matrix_has(layout):
    with pytest.raises(CorruptFileError, match="layout"):
        Layout(*layout)


class _Runs:
    """Run lengths: a codec as someone else would add it, in one place."""

    name, number, since, tier = "runs", 99, (2, 1), 0
    summary = "long runs of one symbol"
    bound = Bound(1 << 16, units_per_symbol=1, fixed_units=0, bytes_per_symbol=4)

    def encode(self, symbols, layout, *, limit=1 << 62):
        flat = symbols.reshape(-1)
        ends = np.append(np.flatnonzero(np.diff(flat)), flat.size - 1)
        lengths = np.diff(ends, prepend=-1)
        if lengths.max() >= 1 << 16:
            return None
        data = flat[ends].astype("<i4").tobytes() + lengths.astype("<u2").tobytes()
        return data if len(data) <= limit else None

    def decode(self, data, layout):
        count = len(data) // 6
        values, lengths = (
            np.frombuffer(data, "<i4", count),
            np.frombuffer(data, "<u2", -1, 4 * count),
        )
        return np.repeat(values, lengths).reshape(layout.rows, layout.columns)

    def measure(self, symbols, layout):
        data = self.encode(symbols, layout)
        return None if data is None else 8.0 * len(data)


def test_a_codec_that_is_registered_is_chosen_where_it_wins(monkeypatch):
    monkeypatch.setattr("fewbits.coding.codec.CODECS", CODECS)
    values = np.repeat([5, -70_000], [30_000, 30_000]).reshape(100, 600).astype(np.int32)
    plain, _ = encode_symbols(values, Layout(100, 600), "smallest")
    assert plain != "runs"
    register(_Runs())
    try:
        name, data = encode_symbols(values, Layout(100, 600), "smallest")
        assert (name, len(data)) == ("runs", 12)
        assert np.array_equal(decode_symbols(99, data, Layout(100, 600)), values)
    finally:
        del CODECS["runs"]


def test_small_matrices_share_a_stream_where_that_saves():
    layouts = [Layout(16, 144, 9, 3)] * 8 + [Layout(0, 4), Layout(10, 16)]
    smooth = RNG.normal(size=(8, 16, 16, 3, 3))
    smooth[..., 1:] += smooth[..., :-1]
    matrices = [np.rint(1.5 * part).reshape(16, 144).astype(np.int32) for part in smooth]
    matrices += [np.zeros((0, 4), np.int32), RNG.integers(0, 4, (10, 16)).astype(np.int32)]
    cut = list(runs(range(10), lambda at: layouts[at].size))
    assert cut == [list(range(8)), [8], [9]]
    streams = encode_run(matrices[:8], layouts[:8], "smallest")
    assert [stream.members for stream in streams] == [range(8)]
    number = CODECS[streams[0].codec].number
    joined = decode_run(number, streams[0].data, layouts[:8])
    assert all(np.array_equal(a, b) for a, b in zip(joined, matrices[:8], strict=True))
    alone = sum(
        len(encode_symbols(m, x, "smallest")[1])
        for m, x in zip(matrices[:8], layouts, strict=False)
    )
    assert len(streams[0].data) < 0.99 * alone
    fast = encode_run(matrices, layouts, "fast")
    assert [stream.members for stream in fast] == [range(at, at + 1) for at in range(10)]
    with pytest.raises(CorruptFileError, match="share"):
        decode_run(CODECS["rans"].number, streams[0].data, layouts[:8])


def test_runs_are_cut_by_their_symbols():
    assert list(runs([1, 2**20, 5, 0, 7, 8], lambda size: size)) == [
        [1],
        [2**20],
        [5],
        [0],
        [7, 8],
    ]
