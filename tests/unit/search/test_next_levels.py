"""The number of levels that meets a budget, against trying all of them."""

import math

import pytest

from fewbits.search import Goal, Trial, levels_at, nearest_count, next_levels, slope_at

COUNTS = range(3, 256, 2)


def trial(count, scale=1000):
    """Bytes grow with the logarithm of the levels; the score saturates."""
    size = round(scale * math.log2(count))
    return Trial(slope_at(count), size, size / 500, score=1 - 1 / count, levels=count)


def search(goal, start, scale=1000):
    trials = []
    while True:
        move = next_levels(goal, slope_at(start), trials, 1.0)
        if move.slope is None:
            return trials, move.reason
        assert all(move.slope != one.slope for one in trials)
        trials.append(trial(levels_at(move.slope), scale))
        assert len(trials) <= 12


def test_every_count_is_a_slope_and_back():
    assert [levels_at(slope_at(count)) for count in COUNTS] == list(COUNTS)
    assert levels_at(1e-3) is None
    assert levels_at(slope_at(4)) is None
    assert levels_at("0.1") is None


def test_the_nearest_count_is_odd_and_within_bounds():
    assert [nearest_count(n) for n in (1, 3, 4.2, 16, 254.9, 1e4)] == [3, 3, 5, 17, 255, 255]


@pytest.mark.parametrize("limit", [1585, 2000, 2600, 5200, 7990])
@pytest.mark.parametrize("start", [3, 15, 255])
def test_a_size_takes_the_most_levels_that_fit(limit, start):
    goal = Goal("target_bytes", limit, tolerance=0.0)
    trials, _ = search(goal, start)
    best = goal.best(trials, None)
    assert best.levels == max(count for count in COUNTS if trial(count).bytes <= limit)


@pytest.mark.parametrize("drop", [0.2, 0.06, 0.011, 0.0042])
@pytest.mark.parametrize("start", [3, 15, 255])
def test_a_drop_takes_the_fewest_levels_within_it(drop, start):
    goal = Goal("max_drop", drop)
    trials, _ = search(goal, start)
    assert goal.best(trials, 1.0).levels == min(count for count in COUNTS if 1 / count <= drop)


def test_it_ends_near_the_size_and_at_either_end():
    goal = Goal("target_bytes", 3915)
    assert search(goal, 15)[1] == "met within 1%"
    assert search(Goal("target_bytes", 100), 15)[1] == "3 levels are the fewest"
    assert search(Goal("target_bytes", 10**6), 15)[1] == "255 levels are the most"
    assert search(Goal("max_drop", 0.9), 15)[1] == "3 levels are the fewest"
    assert search(Goal("max_drop", 1e-4), 15)[1] == "255 levels are the most"
