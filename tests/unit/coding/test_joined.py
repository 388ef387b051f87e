"""Small matrices in one stream: what it saves, what may be joined, and what is refused."""

import numpy as np
import pytest

from fewbits.coding import CODECS, EFFORTS, decode_group, encode_stream, grouping, join_small
from fewbits.coding.filters import Settings
from fewbits.coding.grouping import LARGEST, SUFFICIENT, _measure
from fewbits.coding.joined import MAX_GROUP, Group, kernel_of
from fewbits.coding.learners import LIMIT, STRENGTHS, Gains, Knowledge
from fewbits.coding.varint import signed_varint, varint
from fewbits.errors import CorruptFileError


def smooth(outputs, inputs, seed=0, scale=2.5):
    """Kernels of 3 by 3 with correlation 0.6 along both directions."""
    rng = np.random.default_rng(seed)
    chain = 0.6 ** np.abs(np.arange(3)[:, None] - np.arange(3))
    root = np.linalg.cholesky(np.kron(chain, chain))
    values = rng.normal(size=(outputs, inputs, 9)) @ root.T
    return np.rint(scale * values).clip(-7, 7).astype(np.int32).reshape(outputs, -1)


LAYERS = [smooth(12, 8, seed) for seed in range(6)]


def coded_alone(matrices):
    return [encode_stream(matrix) for matrix in matrices]


def total(coded):
    """Bytes with checksums; a matrix joined to a later one has none."""
    return sum(len(data) + 4 * (name != "joined" or bool(data)) for name, data in coded)


def unpacked(coded, matrices):
    """Decode as the container does: one stream for all that wait for it."""
    out, waiting = [None] * len(coded), []
    for place, (name, data) in enumerate(coded):
        if name != "joined":
            continue
        waiting.append(place)
        if data:
            shapes = [matrices[k].shape for k in waiting]
            for k, matrix in zip(waiting, decode_group(data, shapes), strict=True):
                out[k] = matrix
            waiting = []
    assert not waiting
    return out


def test_joining_saves_what_many_heads_and_beginnings_cost():
    own = coded_alone(LAYERS)
    joined = join_small(LAYERS, own)
    assert [name for name, _ in joined] == ["joined"] * 6
    assert [len(data) > 0 for _, data in joined] == [False] * 5 + [True]
    assert total(joined) < 0.97 * total(own)
    for want, got in zip(LAYERS, unpacked(joined, LAYERS), strict=True):
        np.testing.assert_array_equal(got, want)
    assert join_small(LAYERS, own) == joined


def test_nothing_grows_and_what_is_not_joined_is_left_alone():
    rng = np.random.default_rng(3)
    others = [rng.integers(-90, 90, (20, 9)), np.zeros((20, 9), np.int32), smooth(2, 2, 1)]
    matrices = [*LAYERS[:2], others[0], None, others[1], *LAYERS[2:4], others[2]]
    own = [("raw", b"x") if m is None else encode_stream(m) for m in matrices]
    joined = join_small(matrices, own)
    assert total(joined) < total(own)
    for place in (2, 3, 4, 7):  # too many symbols, none given, nothing to gain, too few
        assert joined[place] == own[place]
    assert {name for name, _ in joined} > {"joined"}


@pytest.mark.parametrize("count", [0, 1])
def test_there_must_be_two(count):
    own = coded_alone(LAYERS[:count])
    assert join_small(LAYERS[:count], own) == own


def test_a_layer_unlike_the_others_is_left_out():
    odd = np.zeros((40, 90), np.int32)
    odd[::7, ::11] = 5
    matrices = [*LAYERS[:3], odd, *LAYERS[3:]]
    joined = join_small(matrices, coded_alone(matrices))
    assert [name == "joined" for name, _ in joined] == [True] * 3 + [False] + [True] * 3


def test_the_kind_that_saves_most_is_joined():
    flat = [np.rint(np.random.default_rng(k).normal(0, 2, (16, 20))).astype(int) for k in (1, 2)]
    matrices = [LAYERS[0], flat[0], *LAYERS[1:], flat[1]]
    names = [name for name, _ in join_small(matrices, coded_alone(matrices))]
    assert [name == "joined" for name in names] == [True, False, *[True] * 5, False]


def test_groups_are_cut_where_they_grow_too_large(monkeypatch):
    monkeypatch.setattr(grouping, "SUFFICIENT", 3 * LAYERS[0].size)
    joined = join_small(LAYERS, coded_alone(LAYERS))
    assert [len(data) > 0 for _, data in joined] == [False, False, True] * 2
    unpacked(joined, LAYERS)


def test_groups_are_cut_where_they_take_too_long(monkeypatch):
    monkeypatch.setattr(grouping, "MAX_ROWS", 9 * 3 * len(LAYERS[0]))
    joined = join_small(LAYERS, coded_alone(LAYERS))
    assert [len(data) > 0 for _, data in joined] == [False, False, True] * 2


def test_two_that_are_constant_are_no_group():
    fives = [np.full((9, 9), 5, np.int32) for _ in range(4)]
    own = [("raw", bytes(90)) for _ in fives]
    assert join_small(fives, own) == own


def test_large_ones_are_left_alone():
    assert 2 * LARGEST <= SUFFICIENT <= MAX_GROUP
    large = [smooth(86, 86, 1), *LAYERS[:2]]
    assert large[0].size > LARGEST
    own = coded_alone(large)
    joined = join_small(large, own)
    assert joined[1][0] == "joined"
    assert joined[0] == own[0]


def test_only_efforts_that_learn_join():
    assert {name: effort.joins for name, effort in EFFORTS.items()} == {
        "fast": False,
        "balanced": True,
        "smallest": True,
    }


def test_the_measure_agrees_with_the_encoder_at_every_strength():
    group = Group(LAYERS, 9)
    bits = _measure(group)
    assert bits.shape == (6, len(STRENGTHS))
    for strength in range(len(STRENGTHS)):
        assert 0 <= 8 * len(group.encode(strength)) - bits[:, strength].sum() <= 160


def test_kernels_are_told_by_the_columns():
    assert [kernel_of(columns) for columns in (9, 27, 50, 98, 64, 1)] == [9, 9, 25, 49, 1, 1]


def test_what_was_learnt_fades():
    known = Knowledge(3, 0, refined=True)
    known.law.counts[5] = np.array([3, 1, 0]) * 2.0**20
    known.later.add(np.array([[3.0], [0], [1], [2], [7]]), np.array([5.0]))
    known.later.add(np.array([[1.0], [0], [0], [0], [0]]), np.array([2.0]))
    known.fade()
    assert known.law.counts[5].tolist() == [2.0**20, 0, 0]
    assert known.later.squares[0].tolist() == [2, 0, 0, 1, 5]
    assert known.later.right.tolist() == [4, 0, 1, 2, 8]
    assert (known.later.seen, known.later.solved, known.first.seen) == (1, 0, 0)


def test_gains_follow_how_far_predictions_went():
    gains, block = Gains(2), slice(0, 2)
    guess = np.array([[600, -600], [600, -600]])
    np.testing.assert_array_equal(gains.apply(block, guess), guess)
    for _ in range(50):
        gains.add(block, guess, np.array([[300, -300], [-600, 600]]))
    assert gains.apply(block, guess).tolist() == [[302, -303], [0, 0]]
    assert abs(gains.apply(slice(0, 1), np.array([[LIMIT]]))).max() <= LIMIT


@pytest.mark.parametrize("shape", [(1, 2), (1, 64), (65, 9), (3, 98), (2, 32), (400, 1)])
@pytest.mark.parametrize("levels", [2, 3, 64])
def test_a_group_of_one(shape, levels):
    symbols = np.random.default_rng(levels).integers(0, levels, shape).astype(np.int32) - 5
    symbols.reshape(-1)[:2] = -5, levels - 6
    data = CODECS["joined"].encode(symbols)
    np.testing.assert_array_equal(CODECS["joined"].decode(data, *shape), symbols)


def test_what_one_alone_does_not_suit():
    wide = np.arange(70_001).reshape(1, -1) % 2
    tall = np.arange(2 * 70_000).reshape(-1, 2) % 3
    for symbols in (np.zeros((9, 9), int), np.arange(65).reshape(5, 13), wide, tall):
        assert CODECS["joined"].encode(symbols.astype(np.int32)) is None


def test_extremes_of_the_alphabet():
    symbols = np.array([[2**31 - 1, 2**31 - 64] * 9] * 9, np.int64)
    for matrix in (symbols, -symbols - 1):
        data = CODECS["joined"].encode(matrix)
        np.testing.assert_array_equal(CODECS["joined"].decode(data, *matrix.shape), matrix)


def head(*, lowest=-7, taps=9, height=2, centre=448, spread=100):
    packed = bytes([15 - 2 + 64 * 1, 8 + 16 * 3])
    return signed_varint(lowest) + packed + b"".join(map(varint, (taps, height, centre, spread)))


def test_the_height_is_cut_to_the_rows():
    group = Group([np.full((n, 9), n, np.int32) for n in (1, 3, 8)], 9)
    group.settings = Settings(9, 8, 3, 0, 3, 200, 50)
    found = decode_group(group.encode(0), [(1, 9), (3, 9), (8, 9)])
    assert [int(matrix.min()) for matrix in found] == [1, 3, 8]


@pytest.mark.parametrize(
    ("wrong", "shapes"),
    [
        ({"taps": 0}, [(4, 9)]),
        ({"taps": 7}, [(4, 9), (4, 14)]),
        ({}, [(4, 9), (4, 10)]),
        ({}, [(4, 9), (129, 9)]),
        ({"height": 0}, [(4, 9)]),
        ({"height": 2**40}, [(8000, 90)]),
        ({"centre": 897}, [(4, 9)]),
        ({"spread": 0}, [(4, 9)]),
        ({"lowest": 2**31 - 5}, [(4, 9)]),
        ({}, [(4, 9)] * 40_000),
        ({}, [(2**40, 9)]),
        ({}, [(1, 9), (1, 2**40)]),
        ({"height": 2000}, [(1000, 9)] * 8),
        ({}, [(1, 9)] * 7_500),
    ],
)
def test_what_is_beyond_the_bounds_is_refused_before_anything_is_allocated(wrong, shapes):
    with pytest.raises(CorruptFileError, match=r"beyond their bounds|are joined|alphabet"):
        decode_group(head(**wrong) + b"\1", shapes)


def test_words_left_over_and_a_zero_at_the_end_are_refused():
    data = Group(LAYERS[:2], 9).encode(1)
    shapes = [matrix.shape for matrix in LAYERS[:2]]
    assert len(decode_group(data, shapes)) == 2
    for wrong in (data + b"\0", data + bytes(11) + b"\1"):
        with pytest.raises(CorruptFileError, match=r"zero byte|left over"):
            decode_group(wrong, shapes)
    with pytest.raises(CorruptFileError):
        decode_group(data, shapes[:1])


def test_settings_of_a_group_hold_for_its_tallest():
    matrices = [smooth(2, 600), smooth(1000, 1, 1)]
    group = Group(matrices, 9)
    assert group.settings.height == 16
    found = decode_group(group.encode(2), [(2, 5400), (1000, 9)])
    for want, got in zip(matrices, found, strict=True):
        np.testing.assert_array_equal(got, want)
