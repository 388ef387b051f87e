"""What is written can be read with the default limits, whatever codecs would have been smallest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.coded import Contents, GridTensor
from fewbits.coding import CODECS, decode_stream
from fewbits.coding.binary import flags_of
from fewbits.container import decode, encode, limits
from fewbits.container.affordable import frugal
from fewbits.errors import CorruptFileError

ONE = np.ones(1, np.float32)


def nearly_constant(rows, columns, seed, spread=1, rare=200):
    rng = np.random.default_rng(seed)
    hit = rng.random((rows, columns)) < 1 / rare
    return (hit * rng.integers(-spread, spread + 1, (rows, columns))).astype(np.int32)


def contents(matrices):
    return Contents(
        {f"l{k}.w": GridTensor(m.shape, "float32", m, ONE) for k, m in enumerate(matrices)}
    )


@pytest.fixture
def scarce(monkeypatch):
    """Readers that allow little, so that small files show what happens to large ones."""
    monkeypatch.setattr(limits, "default_limit", lambda size: 2**17 + 256 * size)


@pytest.mark.parametrize("effort", ["balanced", "smallest"])
def test_slow_codecs_give_way_where_a_reader_would_refuse_the_file(scarce, monkeypatch, effort):
    given_matrices = [nearly_constant(32, 96, seed) for seed in range(6)]
    data = encode(contents(given_matrices), effort)
    found = decode(data).tensors
    for k, matrix in enumerate(given_matrices):
        np.testing.assert_array_equal(found[f"l{k}.w"].index, matrix)
    monkeypatch.undo()
    smaller = encode(contents(given_matrices), effort)
    assert len(smaller) < len(data)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "default_limit", lambda size: 2**17 + 256 * size)
        with pytest.raises(CorruptFileError, match=r"units of work|more flags"):
            decode(smaller)
    assert len(decode(smaller).tensors) == 6


@settings(max_examples=10, deadline=None)
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
        patch.setattr(limits, "default_limit", lambda size: 2**17 + 256 * size)
        found = decode(encode(contents(matrices), effort)).tensors
    for k, matrix in enumerate(matrices):
        np.testing.assert_array_equal(found[f"l{k}.w"].index, matrix)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.integers(2, 30), st.integers(1, 20), st.integers(0, 999))
def test_flags_are_counted_from_symbols(rows, columns, spread, seed):
    symbols = nearly_constant(rows, columns, seed, spread, rare=2)
    data = CODECS["binary"].encode(symbols)
    if data is None:
        return
    flags = flags_of(symbols, data)
    more = flags - symbols.size
    per_byte = -(-more // len(data))
    np.testing.assert_array_equal(decode_stream("binary", data, rows, columns, per_byte), symbols)
    if more > len(data):
        with pytest.raises(CorruptFileError, match="more flags"):
            decode_stream("binary", data, rows, columns, (more - 1) // len(data))


def test_joined_matrices_stay_together():
    coded = [("joined", b""), ("static", b"x"), ("joined", b"y"), ("binary", b"z" * 40)]
    quick = [("raw", b"1"), ("raw", b"2"), ("raw", b"3"), ("raw", b"4")]
    assert frugal(coded, quick, [10, 10, 10]) == coded
    dear = frugal(coded, quick, [10, 10**9, 10])
    assert [name for name, _ in dear] == ["raw", "static", "raw", "binary"]
    assert frugal(coded, quick, [10**9, 10, 10])[:2] == [("joined", b""), ("raw", b"2")]
