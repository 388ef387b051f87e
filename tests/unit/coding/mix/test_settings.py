"""Settings that matrices of one stream have in common."""

import numpy as np
import pytest

from fewbits.coding import CODECS, Layout
from fewbits.coding.mix import mix
from fewbits.coding.mix.settings import SMALL, in_common
from paths import path

RNG = np.random.default_rng(3)


def _matrix(scale=1.0, size=(8, 9), centre=0):
    values = np.rint(RNG.laplace(0, scale, size)).astype(np.int32)
    values[0, :2] = -2, 3
    return values + np.int32(centre)


def _settings(matrices, codec="mix"):
    layouts = [Layout(*values.shape) for values in matrices]
    own = [CODECS[codec].settings_of(*pair) for pair in zip(matrices, layouts, strict=True)]
    return own, in_common(own, matrices)


def test_ranges_of_alike_matrices_become_one():
    matrices = [_matrix(scale) for scale in (0.5, 4, 1, 9)]
    own, shared = _settings(matrices)
    assert len({(one.lowest, one.highest) for one in own}) > 1
    lowest, highest = min(map(np.min, matrices)), max(map(np.max, matrices))
    assert {(one.lowest, one.highest) for one in shared} == {(lowest, highest)}
    assert [one.usual for one in shared] == [one.usual for one in own]
    taken = [len(one.to_bytes(before)) for one, before in _pairs(shared)]
    assert taken == [5, 1, 1, 1]


def _pairs(settings):
    return zip(settings, [None, *settings[:-1]], strict=True)


def test_a_small_matrix_is_coded_as_most_others():
    odd = _matrix(100)
    odd[0] = 1  # the most frequent
    own, shared = _settings([_matrix(), _matrix(), odd])
    assert (own[2].centre, own[2].shift) == (1, 2)
    assert (shared[2].centre, shared[2].shift) == (0, 0)
    assert shared[2].usual > 4 * own[2].usual / 2


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(np.full((8, 9), 7, np.int32), id="one value"),
        pytest.param(np.abs(_matrix()), id="no negative values"),
        pytest.param(_matrix(centre=100), id="values elsewhere"),
        pytest.param(_matrix(10**4), id="far larger values"),
        pytest.param(_matrix(size=(SMALL // 8, 9), centre=1), id="a large matrix"),
    ],
)
def test_others_keep_their_own(other):
    own, shared = _settings([_matrix(), other, _matrix()])
    assert shared[1] == own[1]
    assert shared[0].lowest == min(own[0].lowest, own[2].lowest)


def test_a_single_matrix_keeps_its_own():
    own, shared = _settings([_matrix(3)])
    assert shared == own


@pytest.mark.parametrize("codec", ["mix", "trellis"])
def test_shared_settings_take_fewer_bytes_and_give_the_matrices_back(codec, monkeypatch):
    matrices = [_matrix(1 + k % 3) for k in range(12)]
    if codec == "trellis":
        matrices = [path(values) for values in matrices]
    layouts = [Layout(8, 9)] * len(matrices)
    data = CODECS[codec].encode_group(matrices, layouts)
    found = CODECS[codec].decode_group(data, layouts)
    assert all(map(np.array_equal, found, matrices))
    monkeypatch.setattr(mix, "in_common", lambda own, _: own)
    assert len(data) < len(CODECS[codec].encode_group(matrices, layouts)) - 30
