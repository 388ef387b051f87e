"""Truncated, corrupted and invented streams: the documented error or other symbols, never more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.coding import CODECS, Layout, decode_symbols, kernels, mix, numbers, rans
from fewbits.errors import CorruptFileError

RNG = np.random.default_rng(4)
LAYOUT = Layout(12, 45, 9, 3)
VALUES = np.rint(RNG.laplace(0, 2, (12, 45))).astype(np.int32)
WIDE = np.rint(RNG.standard_t(1, (12, 45)) * 1000).clip(-(2**31), 2**31 - 1).astype(np.int64)
BYTES = RNG.normal(size=(90, 1)).astype("<f4").view(np.uint8)
STREAMS = {
    **{
        name: (CODECS[name].encode(VALUES, LAYOUT), name, LAYOUT) for name in ("raw", "rans", "mix")
    },
    "wide": (CODECS["rans"].encode(WIDE.astype(np.int32), LAYOUT), "rans", LAYOUT),
    "planes": (CODECS["planes"].encode(BYTES, Layout(90, 4)), "planes", Layout(90, 4)),
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


@pytest.mark.parametrize("name", ["rans", "mix"])
def test_plain_and_compiled_kernels_read_the_same_from_broken_streams(name, monkeypatch):
    layout = Layout(6, 18, 9, 3)
    data = CODECS[name].encode(np.ascontiguousarray(VALUES[:6, :18]), layout)
    for _ in range(40):
        broken = bytearray(data)
        for _ in range(int(RNG.integers(1, 4))):
            broken[int(RNG.integers(len(broken)))] = int(RNG.integers(256))
        found = []
        for chosen in (kernels.plain(), kernels.compiled()):
            for module in (mix, rans, numbers):
                monkeypatch.setattr(module, "pick", lambda steps, chosen=chosen: chosen)
            found.append(_try(bytes(broken), name, layout))
        assert np.array_equal(*found) if found[0] is not None else found[1] is None
