"""Truncated, corrupted and invented streams: the documented error or other symbols, never more."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_time import within
from fewbits.coding import CODECS, Layout, decode_symbols, kernels, numbers
from fewbits.coding.codec import varint
from fewbits.coding.mix import mix
from fewbits.coding.mix.settings import Settings
from fewbits.coding.rans import classes, rans
from fewbits.errors import CorruptFileError

RNG = np.random.default_rng(4)
LAYOUT = Layout(12, 45, 9, 3)
VALUES = np.rint(RNG.laplace(0, 2, (12, 45))).astype(np.int32)
WIDE = np.rint(RNG.standard_t(1, (12, 45)) * 1000).clip(-(2**31), 2**31 - 1).astype(np.int64)
BYTES = RNG.normal(size=(90, 1)).astype("<f4").view(np.uint8)
HALVES = RNG.normal(size=(800, 1)).astype("<f2").view(np.uint8)
STREAMS = {
    **{
        name: (CODECS[name].encode(VALUES, LAYOUT), name, LAYOUT) for name in ("raw", "rans", "mix")
    },
    "wide": (CODECS["rans"].encode(WIDE.astype(np.int32), LAYOUT), "rans", LAYOUT),
    "planes": (CODECS["planes"].encode(BYTES, Layout(90, 4)), "planes", Layout(90, 4)),
    "floats": (CODECS["floats"].encode(HALVES, Layout(800, 2)), "floats", Layout(800, 2)),
}


def _try(data, name, layout):
    """Decode; anything but a matrix of the layout or a CorruptFileError fails the test."""
    try:
        found = decode_symbols(CODECS[name].number, data, layout)
    except CorruptFileError:
        return None
    assert found.shape == (layout.rows, layout.columns)
    return found


@pytest.mark.parametrize("stream", STREAMS)
def test_every_truncation(stream):
    data, name, layout = STREAMS[stream]
    whole = _try(data, name, layout)
    for length in range(len(data)):
        found = _try(data[:length], name, layout)
        assert found is None or not np.array_equal(found, whole)
    assert _try(data + b"\1\2\3\4\5", name, layout) is None


@pytest.mark.parametrize("stream", STREAMS)
def test_corrupted_bytes(stream):
    data, name, layout = STREAMS[stream]
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(int(RNG.integers(1, 4))):
            at = int(RNG.integers(min(len(data), int(RNG.choice([8, 40, len(data)])))))
            broken[at] = int(RNG.integers(256))
        _try(bytes(broken), name, layout)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "layout", [(1, 1), (540, 1), (1, 540), (12, 45), (45, 12, 3), (60, 9, 9, 3)]
)
def test_the_wrong_layout(stream, layout):
    data, name, _ = STREAMS[stream]
    _try(data, name, Layout(*layout))


@pytest.mark.parametrize("name", CODECS)
@given(data=st.binary(max_size=60), rows=st.integers(1, 40), columns=st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_invented_bytes(name, data, rows, columns):
    _try(data, name, Layout(rows, columns))


@pytest.mark.parametrize("name", ["raw", "rans", "mix"])
def test_more_symbols_than_the_bytes_can_hold_are_refused_before_any_work(name):
    data = CODECS[name].encode(VALUES, LAYOUT)
    with pytest.raises(CorruptFileError, match="at most"):
        decode_symbols(CODECS[name].number, data, Layout(1 << 20, 1 << 20))


@pytest.mark.parametrize(
    ("name", "count"), [("rans", 40), ("mix", 12), pytest.param("mix", 80, marks=pytest.mark.slow)]
)
def test_plain_and_compiled_kernels_read_the_same_from_broken_streams(name, count, monkeypatch):
    layout = Layout(6, 18, 9, 3)
    data = CODECS[name].encode(np.ascontiguousarray(VALUES[:6, :18]), layout)
    for _ in range(count):
        broken = bytearray(data)
        for _ in range(int(RNG.integers(1, 4))):
            broken[int(RNG.integers(len(broken)))] = int(RNG.integers(256))
        found = []
        for chosen in (kernels.plain(), kernels.compiled()):
            for module in (mix, rans, numbers):
                monkeypatch.setattr(module, "pick", lambda steps, chosen=chosen: chosen)
            found.append(_try(bytes(broken), name, layout))
        assert np.array_equal(*found) if found[0] is not None else found[1] is None


def _flagged(value, layout, settings):
    """Return the stream of a matrix of one value, by settings that make it dear."""
    values = np.full((layout.rows, layout.columns), value, np.int32)
    stream = mix._Stream(mix.ENCODE, layout.size, room=4 * layout.size)
    stream.walk(values, layout, settings)
    return settings.to_bytes(None) + mix.coded_bytes(stream.state, stream.buffer)


def test_a_stream_has_no_more_flags_than_its_bytes_pay_for():
    """Flags that are almost sure cost next to nothing, and a large symbol has sixty of them."""
    layout = Layout(90, 80)
    data = _flagged(2**31 - 2, layout, Settings(-1, 2**31 - 2, -1, 0, 1, 0))
    assert len(data) < layout.size / 16
    with pytest.raises(CorruptFileError, match="flags"):
        decode_symbols(CODECS["mix"].number, data, layout)
    few = _flagged(3, layout, Settings(-1, 3, 0, 0, 1, 0))  # four flags each, or three
    assert len(few) < layout.size / 16
    assert (decode_symbols(CODECS["mix"].number, few, layout) == 3).all()


def test_what_has_too_many_flags_is_left_to_other_codecs():
    """Half of the symbols are 16 flags away from the other half, and none is a surprise."""
    values = np.repeat(np.array([[0], [200_000]], np.int32), 8_000, axis=1)
    values[1, 0] = 0
    assert CODECS["mix"].encode(values, Layout(2, 8_000)) is None
    few = np.minimum(values, 1)
    assert CODECS["mix"].encode(few, Layout(2, 8_000)) is not None


@pytest.mark.parametrize("fill", [0, 1, 85, 255])
@pytest.mark.parametrize("kind", [0, 3, 12])
def test_side_information_ends_where_its_bytes_do(fill, kind):
    kernels.compiled()
    reader = numbers.Numbers.reader(bytes([fill]) * 40)
    asked = np.zeros(5_000_000, np.int64)
    with within(0.5), pytest.raises(CorruptFileError, match="side information ends"):
        reader.code(asked, kind)


@pytest.mark.parametrize("shape", [(1 << 18, 1), (1, 1 << 18), (2, 1 << 17), (1, 1 << 18, 1 << 18)])
def test_cells_of_classes_are_no_more_than_symbols(shape):
    """A level for the one row of a wide matrix would have asked for all levels of every column."""
    kernels.compiled()
    layout = Layout(*shape)
    levels = [np.zeros(size, np.uint8) for size in (layout.rows, layout.columns // layout.taps)]
    for known in levels:
        known[-1] = 15
    known = classes.Classes(
        *levels, np.zeros(layout.taps, np.uint8), np.zeros(31, np.int64), np.array([[255, 1]])
    )
    side = numbers.Numbers.writer(layout.size)
    classes.code_classes(side, known, 2)
    side = side.to_bytes()
    bins = np.zeros((layout.rows, layout.columns), np.uint8)
    window = rans.Window(0, 2)
    data = window.to_bytes() + varint(len(side)) + side + rans._push(bins, bins, window, known)
    assert len(data) < 1000
    tracemalloc.start()
    found = CODECS["rans"].decode(data, layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found.any()
    assert peak < 24 * layout.size + 4_000_000
