"""The parts that codecs are made of, each beside its slow and obvious twin."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.coding import CODECS
from fewbits.coding.bitcoder import (
    DECODE,
    ENCODE,
    code_bit,
    coded_bytes,
    octaves,
    open_coder,
    squash,
    stretch,
)
from fewbits.coding.codec import Cursor, Layout
from fewbits.coding.mix.mix import neighbours, period_of
from fewbits.coding.mix.mixer import accumulate, new_table, predict, solve_sweep
from fewbits.coding.numbers import Numbers
from fewbits.coding.rans.classes import roots_of, shares_of, slots_of, starts_of
from fewbits.errors import CorruptFileError

RNG = np.random.default_rng(8)


def test_tables_are_the_functions_they_stand_for():
    for odds in range(-3100, 3100, 7):
        chance = 65536 / (1 + math.exp(-max(-3071, min(3071, odds)) / 256))
        assert abs(squash(odds) - chance) <= 1
    for chance in range(8, 65536, 16):
        exact = 256 * math.log(chance / (65536 - chance))
        assert abs(stretch(chance) - max(-2047, min(2047, exact))) <= max(1, abs(exact) / 40)
    assert [octaves(size) for size in range(500)] == [
        round(4 * math.log2(s + 1)) for s in range(500)
    ]
    assert octaves(10**9) == octaves((1 << 13) - 1) == 52


@given(st.lists(st.tuples(st.integers(1, 65535), st.booleans()), max_size=200))
@settings(max_examples=40, deadline=None)
def test_bits_come_back_in_about_their_information(pairs):
    state, buffer = open_coder(ENCODE, room=600)
    for chance, bit in pairs:
        code_bit(state, buffer, chance, int(bit))
    data = coded_bytes(state, buffer)
    bits = sum(-math.log2((c if b else 65536 - c) / 65536) for c, b in pairs)
    assert len(data) * 8 <= bits + 0.01 * len(pairs) + 16
    state, buffer = open_coder(DECODE, data)
    assert [code_bit(state, buffer, chance, 0) for chance, _ in pairs] == [int(b) for _, b in pairs]


@given(st.lists(st.integers(0, 10**7), min_size=2, max_size=256).filter(any))
@settings(max_examples=100, deadline=None)
def test_shares_fill_the_table_and_forget_no_symbol(counts):
    counts = np.array(counts, np.int64)
    roots = roots_of(counts[None])[0]
    assert ((roots > 0) == (counts > 0)).all()
    assert roots.max() <= 255
    shares = shares_of(roots)
    assert shares.sum() == 4096
    assert (shares[counts > 0] > 0).all()
    assert shares.max() < 4096
    slots, starts = slots_of(shares[None]), starts_of(shares[None])[0]
    for slot in range(0, 4096, 97):
        symbol, size, place = slots[slot] & 255, slots[slot] >> 8 & 4095, slots[slot] >> 20
        assert (starts[symbol, 0] + place, starts[symbol, 1]) == (slot, size)


def test_sweeps_find_the_least_squares():
    features = RNG.integers(-20, 20, (3000, 4))
    target = features @ [3, -1, 0, 2] + RNG.integers(-9, 10, 3000)
    table, state = new_table(np.zeros((1, 4), np.int64)), np.zeros(9, np.int64)
    for row, wanted in zip(features, target, strict=True):
        state[2:6] = row
        accumulate(table, 0, state, 2, 4, int(wanted))
    for _ in range(30):
        solve_sweep(table, 0, 4, 10, 16)
    exact = np.linalg.lstsq(features, target, rcond=None)[0]
    assert table[0, 20:24] / 65536 == pytest.approx(exact, abs=1e-3)
    assert predict(table, 0, state, 2, 4) == int(table[0, 20:24] @ state[2:6])


@given(st.lists(st.integers(-(2**22), 2**22), max_size=60))
@settings(max_examples=40, deadline=None)
def test_side_information_comes_back(numbers):
    known = np.array(numbers, np.int64)
    writer = Numbers.writer(1000)
    writer.code(known, 3)
    data = writer.to_bytes()
    reader = Numbers.reader(data)
    assert np.array_equal(reader.code(np.zeros_like(known), 3), known)
    reader.finish()
    with pytest.raises(CorruptFileError):
        Numbers.reader(data + bytes(9)).finish()


def test_neighbours_of_a_kernel_are_taps_of_the_same_filter():
    rows = neighbours(Layout(2, 18, 9, 3))
    assert rows.shape == (9, 12)
    assert not rows[0].any()
    assert rows[8, 8:].tolist() == [1, 3, 4, 0]
    assert rows[4, 8:].tolist() == [1, 3, 4, 2]
    assert (rows <= np.arange(9)[:, None]).all()
    assert neighbours(Layout(2, 784, 1, 28))[0, 8:].tolist() == [1, 28, 29, 27]


def test_tuples_are_recognised():
    law = RNG.random(16) ** 6
    cells = RNG.choice(16, 20_000, p=law / law.sum())
    pairs = np.stack([cells // 4, cells % 4], 1).reshape(100, 400).astype(np.int32)
    told = np.where(RNG.random(20_000) < 0.5, cells // 4, RNG.integers(0, 4, 20_000))
    triples = np.stack([cells // 4, told, RNG.integers(0, 4, 20_000)], 1).reshape(100, 600)
    assert period_of(pairs, Layout(100, 400)) == 2
    assert period_of(pairs.reshape(-1, 25), Layout(1600, 25, 25, 5)) == 2
    assert period_of(triples.astype(np.int32), Layout(100, 600)) == 3
    assert period_of(RNG.integers(0, 4, (100, 400)).astype(np.int32), Layout(100, 400)) == 1


def test_truncated_integers():
    for data in (b"", b"\x80", b"\x80\x00", b"\xff" * 10):
        with pytest.raises(CorruptFileError):
            Cursor(data).varint()
    with pytest.raises(CorruptFileError, match="3 bytes wanted"):
        Cursor(b"ab").take(3)


@pytest.mark.parametrize("value", [0, 255, 256, -1, -128, -129, 2**31 - 1, -(2**31)])
def test_a_constant_takes_a_byte_a_symbol_where_it_can(value):
    constant, layout = CODECS["constant"], Layout(3, 5)
    data = constant.encode(np.full((3, 5), value, np.int32), layout)
    found = constant.decode(data, layout)
    assert (found == value).all()
    assert found.itemsize == (1 if -128 <= value <= 255 else 4)
