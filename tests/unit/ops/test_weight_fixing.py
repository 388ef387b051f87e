"""The greedy choice of values against a slow one that looks at every weight and every code."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cpu_time import within
from fewbits.errors import ConfigError, ModelError
from fewbits.ops import weight_fixing as fixing_level
from fewbits.ops.levels.powers_of_two import LEAST, candidates, first_deviations
from fewbits.ops.weight_fixing import Ladder, cluster

# -- oracles


def terms(code, signed=False):
    """Powers of two in a code: binary ones, or nonzero digits of the non-adjacent form."""
    code, count = abs(int(code)), 0
    while code:
        if code % 2:
            count += 1
            code -= (2 - code % 4) if signed else 1
        code //= 2
    return count


def slow_candidates(top, order, signed):
    return [c for c in range(-top, top + 1) if terms(c, signed) <= order]


def slow_cluster(values, deviations, count, ladder, used=()):
    """Return (order, distance, code, members) of each pick."""
    v, s = values.astype(float), np.maximum(deviations.astype(float), 2.0**-20)
    unit, free, picks, known = 2.0**ladder.finest, set(range(len(v))), [], {0, *used}
    levels = ladder.levels()
    left = count
    while left:
        order, distance = next(levels)
        top = int(max(abs(v[i]) for i in free) * unit)
        codes = slow_candidates(top, order, ladder.signed)
        if ladder.most is not None:
            codes = sorted({*codes, *known}) if len(known) < ladder.most else sorted(known)
        while left and codes:
            if ladder.most is not None and len(known) >= ladder.most:
                codes = [c for c in codes if c in known]
            reach = {}
            for c in codes:
                far = {i: abs(c / unit - v[i]) / s[i] for i in free}
                if c == 0:
                    far = {i: 0.0 if abs(v[i]) * unit < 1 else d for i, d in far.items()}
                reach[c] = {i: d for i, d in far.items() if d <= distance}
            best = max(codes, key=lambda c: len(reach[c]))
            if ladder.prefer_zero and 0 in codes:
                most = len(reach[best])
                if reach[0] and len(reach[0]) * (1 + ladder.prefer_zero) >= most:
                    best = 0
            if not reach[best]:
                break
            order_of = sorted(reach[best], key=lambda i: (reach[best][i], abs(v[i]), i))
            members = order_of[:left]
            picks.append((order, distance, best, sorted(members)))
            free -= set(members)
            left -= len(members)
            codes.remove(best)
            known.add(best)
    return picks


def told(found):
    return [
        (p.order, p.distance, p.code, np.flatnonzero(found.pick == k).tolist())
        for k, p in enumerate(found.picks)
    ]


def weights(seed, scale, count=400):
    g = np.random.default_rng(seed)
    v = (g.standard_normal(count) * scale).astype(np.float32)
    v[: count // 10] = 0
    v[count // 10 : count // 5] = np.exp2(g.integers(-8, 1, count // 5 - count // 10))
    v[count // 5 : count // 4] = v[count // 4 : 2 * (count // 4) - count // 5]  # ties
    return g.permutation(v)


# -- candidates and first deviations


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("top", [0, 1, 2, 5, 64, 166, 473])
def test_candidates_are_all_codes_of_so_many_powers(top, signed):
    for order in (1, 2, 3, 4):
        assert candidates(top, order, signed).tolist() == slow_candidates(top, order, signed)


def test_numbers_of_candidates():
    """Counts of the dossier, for largest weights of 0.9, 1.3 and 3.7 on a grid of 2**-7."""
    counts = [[len(candidates(int(m * 128), n)) for n in (1, 2, 3, 4)] for m in (0.9, 1.3, 3.7)]
    assert counts == [[15, 57, 127, 193], [17, 71, 167, 263], [19, 91, 259, 509]]
    signed = [(len(candidates(128, n, signed=True)) - 1) // 2 for n in (1, 2, 3, 4)]
    assert signed == [8, 44, 104, 128]


def test_first_deviations_follow_the_formula():
    v = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    wide = np.abs(v.astype(float))
    up, down = np.exp2(np.ceil(np.log2(wide))), np.exp2(np.floor(np.log2(wide)))
    product = (up - wide) / wide * (wide - down) / wide
    wanted = np.clip(0.0025 * product / np.quantile(product, 0.75), LEAST, 0.05)
    found = first_deviations(v)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert np.quantile(found, 0.75) == pytest.approx(0.0025, rel=1e-6)
    assert np.median(found) == pytest.approx(0.00197, abs=3e-5)
    assert found.max() == pytest.approx(0.0027, abs=5e-5)
    at_most = first_deviations(np.array([4 / 3, -8 / 3, 1.1, 1.9, 1.5], np.float32))
    assert at_most.argmax() in (0, 1)
    assert at_most[0] == pytest.approx(at_most[1], rel=1e-5)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([0.0, 0.0], [LEAST] * 2), ([0.5, -2.0, 0.0], [LEAST] * 3), ([0.3], [0.0025]), ([], [])],
)
def test_first_deviations_of_zeros_powers_and_single_weights(values, wanted):
    found = first_deviations(np.array(values, np.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_zero_does_not_change_the_deviations_of_the_others():
    v = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    found = first_deviations(np.append(v, np.float32(0)))
    np.testing.assert_array_equal(found[:-1], first_deviations(v))
    assert found[-1] == np.float32(LEAST)


# -- the choice


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("scale", [0.01, 0.1, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_picks_as_the_slow_one(seed, scale, share):
    v = weights(seed, scale, 200)
    s = first_deviations(v) * (1 if seed else 8)
    ladder = Ladder(7)
    count = math.ceil(share * len(v))
    found = cluster(v, s, count, ladder)
    assert told(found) == slow_cluster(v, s, count, ladder)
    assert int((found.pick >= 0).sum()) == count


@pytest.mark.parametrize(
    "change",
    [
        {"signed": True},
        {"terms": 2, "widen": 3.0},
        {"most": 9},
        {"most": 40},
        {"prefer_zero": 0.3},
        {"finest": 10, "distance": 0.5},
    ],
    ids=str,
)
def test_the_same_picks_with_other_ladders(change):
    v = weights(3, 0.2)
    s = first_deviations(v) * 4
    ladder = Ladder(**{"finest": 7, **change})
    found = cluster(v, s, len(v), ladder, np.array([16, -48]))
    assert told(found) == slow_cluster(v, s, len(v), ladder, (16, -48))
    if "most" in change:
        assert len(np.unique(found.codes())) <= change["most"]


def test_a_constant_deviation_is_full_of_ties():
    v = np.round(weights(5, 0.2) * 512).astype(np.float32) / 512  # middles between codes
    s = np.full_like(v, 2.0**-8)
    for count in (123, 400):
        assert told(cluster(v, s, count, Ladder(7))) == slow_cluster(v, s, count, Ladder(7))


def test_many_cells_are_numbered_by_sorting(monkeypatch):
    v = weights(0, 0.3)
    s = first_deviations(v) * 4
    counted = cluster(v, s, len(v), Ladder(7))
    monkeypatch.setattr(fixing_level, "_CELLS", 4)
    assert told(cluster(v, s, len(v), Ladder(7))) == told(counted)


def test_small_weights_become_zero_and_nothing_else():
    """Weights about -0.5 are picked first; zero is still zero then (the trap of the dossier)."""
    g = np.random.default_rng(0)
    small = g.uniform(1e-4, 3e-3, 50)
    v = np.concatenate([np.full(500, -0.5), small, [0.9]]).astype(np.float32)
    found = cluster(v, np.full(len(v), 1e-3, np.float32), len(v), Ladder(7))
    assert found.picks[0].code == -64
    assert (found.codes()[500:550] == 0).all()


def test_the_largest_weight_may_be_a_power_of_two():
    v = np.array([0.5, 0.5, 0.1], np.float32)
    found = cluster(v, np.full(3, 1e-3, np.float32), 2, Ladder(7))
    assert [(p.order, p.code) for p in found.picks] == [(1, 64)]


@pytest.mark.parametrize("value", [0.0, 1e-12, 1e-40])
def test_weights_of_zero_or_nearly_are_fixed_at_zero(value):
    found = cluster(np.full(5, value, np.float32), np.full(5, LEAST, np.float32), 5, Ladder(7))
    assert [(p.code, p.count, p.mean) for p in found.picks] == [(0, 5, 0.0)]


def test_what_a_pick_tells():
    v, s = weights(1, 0.3), np.full(400, 0.01, np.float32)
    found = cluster(v, s, 350, Ladder(7))
    assert sum(p.count for p in found.picks) == 350
    for number, pick in enumerate(found.picks):
        members = v[found.pick == number].astype(float)
        far = np.abs(members - pick.code / 128) / s[0].astype(float)
        far[(np.abs(members) < 1 / 128) & (pick.code == 0)] = 0
        assert pick.count == len(members)
        assert pick.furthest == pytest.approx(far.max())
        assert pick.mean == pytest.approx(far.mean())
        assert pick.deviation == pytest.approx(members.std(), abs=1e-9)
        assert pick.furthest <= pick.distance
        assert terms(pick.code) <= pick.order <= 4
    wanted = np.array([p.deviation for p in found.picks] + [0])[found.pick]
    np.testing.assert_allclose(found.deviations(), wanted, rtol=1e-6)


def test_the_ladder():
    levels = Ladder(7).levels()
    first = [next(levels) for _ in range(8)]
    assert first == [(1, 1), (2, 1), (2, 2), (3, 2), (3, 4), (4, 4), (4, 8), (4, 16)]


def test_failures_are_loud():
    v, s = np.ones(3, np.float32), np.full(3, 0.1, np.float32)
    bad = np.array([0.1, np.nan, 0.1], np.float32)
    for arguments, error in [
        ((v, bad, 1), "1 of 3 deviations are NaN"),
        ((bad, s, 1), "1 of 3 weights are NaN"),
        ((v, s, 4), "only 3 are free"),
        ((v * 1e6, s, 1), "finest"),
    ]:
        with pytest.raises(ModelError, match=error):
            cluster(*arguments, Ladder(7))
    with pytest.raises(ConfigError, match="terms"):
        cluster(v, s, 1, Ladder(7, terms=0))
    with pytest.raises(ConfigError, match="order"):
        candidates(5, 0)


@pytest.mark.slow
def test_five_million_weights_take_seconds():
    g = np.random.default_rng(0)
    v = (g.standard_normal(5_000_000) * g.choice([0.01, 0.05, 0.2], 5_000_000)).astype(np.float32)
    s = first_deviations(v)
    with within(15):
        cluster(v, s, len(v), Ladder(7))
