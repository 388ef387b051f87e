"""The codec for layers: what it learns, what it costs, and what it refuses."""

from fractions import Fraction

import numpy as np
import pytest

from fewbits.coding import CODECS, decode_stream, encode_stream
from fewbits.coding.adaptive import best_settings
from fewbits.coding.exact import solve_rounded
from fewbits.coding.filters import Settings, centre_and_spread, run
from fewbits.coding.laws import CLASSES, CUMULATIVE, SPREADS, THRESHOLDS, law_table
from fewbits.coding.queue import Decoder, Encoder, Meter
from fewbits.coding.varint import signed_varint, varint
from fewbits.errors import CorruptFileError

ADAPTIVE = CODECS["adaptive"]


def entropy_bytes(symbols):
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / symbols.size)).sum()) / 8


def smooth_filters(outputs, inputs, seed=0):
    """Kernels of 3 by 3 with correlation 0.6 along both directions."""
    rng = np.random.default_rng(seed)
    chain = 0.6 ** np.abs(np.arange(3)[:, None] - np.arange(3))
    root = np.linalg.cholesky(np.kron(chain, chain))
    values = rng.normal(size=(outputs, inputs, 9)) @ root.T
    return np.rint(2.5 * values).clip(-7, 7).astype(np.int32).reshape(outputs, -1)


def unlike_rows(outputs, inputs, seed=0):
    rng = np.random.default_rng(seed)
    scale = np.exp(0.5 * rng.normal(size=(outputs, 1)) + 0.5 * rng.normal(size=(1, inputs)))
    return np.rint(scale * rng.laplace(0, 1, (outputs, inputs))).clip(-31, 31).astype(np.int32)


def solved_by_fractions(matrix, right):
    rows = [[Fraction(int(v)) for v in (*row, r)] for row, r in zip(matrix, right, strict=True)]
    for k in range(len(rows)):
        unit = [value / rows[k][k] for value in rows[k]]
        rows = [[v - row[k] * u for v, u in zip(row, unit, strict=True)] for row in rows]
        rows[k] = unit
    return [(row[-1] + Fraction(1, 2)).__floor__() for row in rows]


@pytest.mark.parametrize("size", [1, 2, 4, 8, 15])
def test_systems_are_solved_exactly_and_rounded(size):
    rng = np.random.default_rng(size)
    for _ in range(5):
        factor = rng.integers(-(2**20), 2**20, (size, size + 2)).astype(object)
        matrix = (factor @ factor.T + np.eye(size, dtype=int) * 12345).tolist()
        right = [int(value) << 30 for value in rng.integers(-(2**30), 2**30, size)]
        assert solve_rounded(matrix, right) == solved_by_fractions(matrix, right)


def test_halves_are_rounded_up():
    assert solve_rounded([[2]], [1]) == [1]
    assert solve_rounded([[2]], [-1]) == [0]
    assert solve_rounded([], []) == []


def test_the_printed_tables_are_what_they_are_said_to_be():
    assert [round(2**20 / (1 + 2 ** (-i / 4))) for i in range(65)] == CUMULATIVE.tolist()
    thresholds = [round(2**14 * 2 ** ((j - 16.5) / 3)) for j in range(31)]
    assert thresholds == THRESHOLDS.tolist()
    assert CLASSES == 32 == SPREADS.size
    away = np.arange(600) + 0.5
    for j, spread in enumerate(SPREADS / 256):
        magnitude = 2 * (1 - 1 / (1 + 4.0 ** (-away / spread))).sum()
        assert magnitude == pytest.approx(2 ** ((j - 17) / 3), rel=0.06)


@pytest.mark.parametrize("size", [2, 3, 15, 64])
def test_the_law_is_a_logistic_distribution_around_its_place(size):
    table = law_table(size)
    assert table.shape == ((4 * size + 5) * CLASSES, size)
    assert (table >= 64).all()
    assert (table.sum(axis=1) == 2**20 + 64 * size).all()
    edges = np.concatenate([[-np.inf], np.arange(size - 1) + 0.5, [np.inf]])
    for place, j in [(4, 17), (6, 20), (4 * size, 12), (0, 25)]:
        middle = place / 4 - 1
        with np.errstate(over="ignore"):
            below = 1 / (1 + 4.0 ** (-(edges - middle) / (SPREADS[j] / 256)))
        want = np.diff(below)
        got = (table[place * CLASSES + j] - 64) / 2**20
        np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.parametrize(
    ("symbols", "most"),
    [
        (smooth_filters(64, 64), 0.93),
        (smooth_filters(16, 16), 0.97),
        (unlike_rows(512, 512), 0.95),
        ((smooth_filters(64, 64) // 3).clip(-1, 1), 0.97),
    ],
)
def test_structure_pays(symbols, most):
    """Per cent of the entropy of order 0; the codec chosen is this one."""
    name, data = encode_stream(symbols)
    assert name == "adaptive"
    assert len(data) <= most * entropy_bytes(symbols)
    np.testing.assert_array_equal(decode_stream(name, data, *symbols.shape), symbols)


def test_where_there_is_no_structure_little_is_lost():
    symbols = np.rint(np.random.default_rng(1).laplace(0, 1.5, (512, 512))).astype(np.int32)
    assert len(ADAPTIVE.encode(symbols)) <= 1.004 * entropy_bytes(symbols)


def test_kernels_are_found_in_the_columns():
    settings = best_settings(smooth_filters(32, 32) + 7, 15)
    assert (settings.taps, settings.order, settings.width) == (9, 8, 3)


def test_the_meter_agrees_with_the_encoder():
    places = smooth_filters(32, 16) + 7
    settings = Settings(9, 8, 3, 2, 1, *centre_and_spread(places))
    meter, encoder = Meter(), Encoder()
    run(places, places.shape, 15, settings, meter)
    run(places, places.shape, 15, settings, encoder)
    assert 0 <= 8 * len(encoder.to_bytes()) - meter.bits <= 64


@pytest.mark.parametrize("shape", [(1, 64), (64, 2), (2, 32), (7, 45), (33, 27), (65, 16), (3, 98)])
@pytest.mark.parametrize("levels", [2, 3, 64])
def test_shapes_and_alphabets(shape, levels):
    symbols = np.random.default_rng(levels).integers(0, levels, shape).astype(np.int32) - 5
    symbols[0, :2] = -5, levels - 6
    data = ADAPTIVE.encode(symbols)
    np.testing.assert_array_equal(ADAPTIVE.decode(data, *shape), symbols)
    assert ADAPTIVE.encode(symbols) == data


@pytest.mark.parametrize(
    "symbols",
    [
        np.arange(100, dtype=np.int32).reshape(10, 10) % 65,
        np.arange(100, dtype=np.int32).reshape(100, 1) % 3,
        np.arange(60, dtype=np.int32).reshape(6, 10) % 3,
        np.zeros((10, 10), np.int32),
    ],
)
def test_what_it_does_not_suit(symbols):
    assert ADAPTIVE.encode(symbols) is None


def head(*, taps=9, height=1, centre=448, spread=100):
    """A head for 15 symbols from -7, strength 1, kernels of 3 by 3."""
    packed = bytes([15 - 2 + 64 * 1, 8 + 16 * 3])
    return signed_varint(-7) + packed + b"".join(map(varint, (taps, height, centre, spread)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"taps": 0},
        {"taps": 7},
        {"taps": 81},
        {"height": 0},
        {"height": 41},
        {"height": 2**40},
        {"centre": 897},
        {"spread": 0},
        {"spread": 961},
    ],
)
def test_settings_beyond_their_bounds_are_refused(wrong):
    coder, places = Encoder(), np.full((40, 81), 7, np.int32)
    run(places, (40, 81), 15, Settings(9, 8, 3, 1, 1, 448, 100), coder)
    assert not ADAPTIVE.decode(head() + coder.to_bytes(), 40, 81).any()
    with pytest.raises(CorruptFileError, match="beyond their bounds"):
        ADAPTIVE.decode(head(**wrong) + coder.to_bytes(), 40, 81)


def test_hostile_sizes_are_refused_before_anything_is_allocated():
    for rows, columns in ((2**27, 1), (1, 2**27), (2, 2**16), (2**40, 2**40)):
        with pytest.raises(CorruptFileError, match="beyond their bounds"):
            ADAPTIVE.decode(head(taps=1, height=2) + b"\1", rows, columns)
    with pytest.raises(CorruptFileError, match="alphabet"):
        ADAPTIVE.decode(signed_varint(2**31 - 5) + head()[1:] + b"\1", 40, 81)


def test_words_left_over_and_a_zero_at_the_end_are_refused():
    symbols = smooth_filters(16, 16)
    data = ADAPTIVE.encode(symbols)
    with pytest.raises(CorruptFileError, match="zero byte"):
        ADAPTIVE.decode(data + b"\0", *symbols.shape)
    with pytest.raises(CorruptFileError, match="left over"):
        ADAPTIVE.decode(data + bytes(11) + b"\1", *symbols.shape)


def test_takers_ask_for_what_they_need():
    weights = np.ones((3, 2))
    for taker in (Encoder(), Meter()):
        with pytest.raises(TypeError, match="needs symbols"):
            taker.take(weights, None)
    assert Decoder(b"").take(weights, None).tolist() == [0, 0, 0]
