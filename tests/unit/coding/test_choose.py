"""Which codec is chosen, what shares a stream, and what is refused before any codec is asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.coding import (
    CODECS,
    EFFORTS,
    Layout,
    decode_run,
    decode_symbols,
    encode_run,
    encode_symbols,
)
from fewbits.errors import ConfigError, CorruptFileError

RNG = np.random.default_rng(3)
MIX = CODECS["mix"].number


@pytest.mark.parametrize("effort", EFFORTS)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([0.3, 3, 4e4, 1e9]), st.data())
@settings(max_examples=15, deadline=None)
def test_no_effort_takes_more_than_raw_fields(effort, rows, columns, spread, data):
    rng, layout = np.random.default_rng(data.draw(st.integers(0, 999))), Layout(rows, columns)
    values = rng.normal(0, spread, (rows, columns)).clip(-(2**31), 2**31 - 1).astype(np.int32)
    name, coded = encode_symbols(values, layout, effort)
    assert np.array_equal(decode_symbols(CODECS[name].number, coded, layout), values)
    raw = CODECS["raw"].encode(values, layout)
    assert raw is None or len(coded) <= len(raw)


def test_an_unknown_number_and_an_unknown_effort_are_told():
    with pytest.raises(CorruptFileError, match=r"number 77, unknown.*Install the package"):
        decode_symbols(77, b"", Layout(1, 1))
    with pytest.raises(ConfigError, match="fast, balanced, smallest"):
        encode_symbols(np.zeros((1, 1), np.int32), Layout(1, 1), "quick")


def test_symbols_of_another_layout_are_an_error_of_who_calls():
    with pytest.raises(ValueError, match="do not match the layout"):
        encode_symbols(np.zeros((2, 3), np.int32), Layout(3, 2))


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


def test_a_slower_codec_must_save_what_the_effort_asks_for():
    """Small gains are for "smallest" alone; none are for "fast"."""
    values = np.rint(RNG.laplace(0, 3, (90, 90))).astype(np.int32)
    chosen = {effort: encode_symbols(values, Layout(90, 90), effort) for effort in EFFORTS}
    assert CODECS[chosen["fast"][0]].tier == 0
    lengths = {effort: len(data) for effort, (_, data) in chosen.items()}
    assert lengths["smallest"] <= lengths["balanced"] <= lengths["fast"]
    if chosen["balanced"][0] == "mix":
        assert lengths["balanced"] <= 0.98 * lengths["fast"]


LAYOUTS = [Layout(16, 144, 9, 3)] * 8


def _smooth():
    smooth = RNG.normal(size=(8, 16, 16, 3, 3))
    smooth[..., 1:] += smooth[..., :-1]
    return [np.rint(1.5 * part).reshape(16, 144).astype(np.int32) for part in smooth]


def test_small_matrices_share_a_stream_where_that_saves():
    matrices = _smooth()
    streams = encode_run(matrices, LAYOUTS, "smallest")
    assert [stream.members for stream in streams] == [range(8)]
    number = CODECS[streams[0].codec].number
    joined = decode_run(number, streams[0].data, LAYOUTS)
    assert all(np.array_equal(a, b) for a, b in zip(joined, matrices, strict=True))
    alone = [encode_symbols(*pair, "smallest")[1] for pair in zip(matrices, LAYOUTS, strict=True)]
    assert len(streams[0].data) < 0.99 * sum(map(len, alone))
    fast = encode_run(matrices, LAYOUTS, "fast")
    assert [stream.members for stream in fast] == [range(at, at + 1) for at in range(8)]
    assert encode_run(matrices[:1], LAYOUTS[:1], "smallest")[0].data == alone[0]


def test_what_has_nothing_in_common_stays_alone():
    values = [RNG.integers(0, 4, (10, 16)).astype(np.int32) for _ in range(3)]
    streams = encode_run(values, [Layout(10, 16)] * 3, "smallest")
    assert [stream.members for stream in streams] == [range(at, at + 1) for at in range(3)]


def test_only_a_codec_that_joins_is_asked_for_several_matrices():
    stream = encode_run(_smooth(), LAYOUTS, "smallest")[0]
    for number in (CODECS["rans"].number, CODECS["raw"].number, CODECS["planes"].number):
        with pytest.raises(CorruptFileError, match="share"):
            decode_run(number, stream.data, LAYOUTS)
    with pytest.raises(CorruptFileError, match="share"):
        decode_run(MIX, stream.data, [*LAYOUTS, Layout(0, 4)])
    with pytest.raises(CorruptFileError):
        decode_run(MIX, stream.data, LAYOUTS[:7])
    with pytest.raises(CorruptFileError, match="at most"):
        decode_run(MIX, stream.data, LAYOUTS * 100_000)
