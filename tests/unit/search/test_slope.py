"""The search on known laws of size and score: straight, bent, noisy, in steps, out of reach."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.errors import BudgetError, ConfigError
from fewbits.search import Goal, SlopeSearch, Trace, Trial, next_move

WEIGHTS = 1e6
REFERENCE = 0.98


def law(exponent=0.35, scale=1e5, floor=0.0, noise=0.0, seed=0):
    """Return bytes of a slope; noise is fixed by the slope, as a method's is."""

    def size(slope):
        wiggle = random.Random(f"{seed} {slope}").uniform(-noise, noise)
        return floor + scale * slope**-exponent * (1 + wiggle)

    return size


def scorer(middle=1.0, noise=0.0, samples=1000):
    """Return a score that falls from REFERENCE to nothing around slope ``middle``."""

    def score(slope):
        share = (slope / middle) ** 0.8
        wiggle = random.Random(str(slope)).uniform(-noise, noise)
        return round((REFERENCE / (1 + share) + wiggle) * samples) / samples

    return score


def trial_of(size, score=None):
    def evaluate(slope):
        count = max(1, int(size(slope)))
        return Trial(slope, count, 8 * count / WEIGHTS, score(slope) if score else None, 1.0)

    return evaluate


def search(goal, evaluate, start=1.0, trace=None, **means):
    trace = trace or Trace(goal.to_dict(), reference=REFERENCE)
    search = SlopeSearch(goal, start, trace, **means)
    return search.run(evaluate), trace


LAWS = st.builds(
    law,
    exponent=st.floats(0.15, 0.8),
    scale=st.floats(1e4, 1e6),
    noise=st.just(0.01),
    seed=st.integers(0, 9999),
)


@settings(max_examples=200, deadline=None)
@given(LAWS, st.floats(-20, 10), st.floats(-5, 5))
def test_a_noisy_power_law_is_met_from_below_or_the_best_is_reported(size, start, aim):
    goal = Goal("target_bytes", size(2.0**aim))
    found, trace = search(goal, trial_of(size), 2.0**start)
    assert len(trace.trials) <= 12
    assert found.bytes <= goal.limit
    below = [t.bytes for t in trace.trials if t.bytes <= goal.limit]
    assert found.bytes == max(below)
    assert goal.is_close(found) or trace.ended != "met within 1%"
    assert len({t.slope for t in trace.trials}) == len(trace.trials)


@settings(max_examples=200, deadline=None)
@given(st.floats(0.15, 0.8), st.floats(-20, 10), st.floats(-5, 5), st.floats(0, 5e4))
def test_a_smooth_law_is_always_met_within_one_percent(exponent, start, aim, floor):
    size = law(exponent, floor=floor)
    goal = Goal("target_bytes", size(2.0**aim))
    found, trace = search(goal, trial_of(size), 2.0**start)
    assert 0.99 * goal.limit <= found.bytes <= goal.limit
    assert len(trace.trials) <= 12


def test_noise_of_one_percent_is_rarely_too_much():
    missed, tried = 0, 0
    for seed in range(300):
        draw = random.Random(seed)
        size = law(draw.uniform(0.15, 0.8), noise=0.01, seed=seed)
        goal = Goal("target_bytes", size(2 ** draw.uniform(-5, 5)))
        found, trace = search(goal, trial_of(size), 2 ** draw.uniform(-15, 5))
        missed += not goal.is_close(found)
        tried += len(trace.trials)
    assert missed <= 6  # 2 %
    assert tried / 300 < 6


def test_target_bits_is_the_same_search_in_another_unit():
    size = law()
    by_bits, bits = search(Goal("target_bits", 0.5), trial_of(size))
    by_bytes, counted = search(Goal("target_bytes", 0.5 * WEIGHTS / 8), trial_of(size))
    assert [t.slope for t in bits.trials] == pytest.approx([t.slope for t in counted.trials])
    assert by_bits.bits_per_weight <= 0.5
    assert by_bits.bytes == by_bytes.bytes


@pytest.mark.parametrize("jump", [1.02, 1.3, 8.0])
def test_a_size_in_steps_gives_the_largest_step_that_fits(jump):
    def size(slope):
        return 1e5 * jump ** -math.floor(math.log(slope) / math.log(2))

    goal = Goal("target_bytes", 0.995 * 1e5)  # between two steps, and near neither
    found, trace = search(goal, trial_of(size), 1e-3)
    assert found.bytes == int(1e5 / jump)
    assert trace.ended == "the size jumps over the target" or len(trace.trials) == 12


def test_a_target_below_the_floor_is_an_error_that_says_the_least():
    size = law(floor=5e4)
    with pytest.raises(BudgetError, match=r"40,000 bytes.*smallest file reached has 5\d,\d\d\d"):
        search(Goal("target_bytes", 4e4), trial_of(size))


def test_a_size_that_no_slope_moves_ends_early():
    trace = Trace({})
    goal = Goal("target_bytes", 1000)
    with pytest.raises(BudgetError, match="no larger slope gives another size"):
        SlopeSearch(goal, 1.0, trace).run(trial_of(lambda slope: 2000))
    assert len(trace.trials) <= 3
    assert trace.chosen is None
    found, trace = search(goal, trial_of(lambda slope: 500))
    assert (found.bytes, trace.ended) == (500, "no smaller slope gives another size")


def test_a_target_above_all_sizes_gives_the_largest_worth_having():
    found, trace = search(Goal("target_bytes", 1e9), trial_of(law()))
    assert found.bits_per_weight >= 32
    assert trace.ended == "no larger file is worth having"


@pytest.mark.parametrize("start", [1e-6, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("limit", [0.005, 0.05])
def test_the_smallest_file_within_a_drop(start, limit):
    score, size = scorer(samples=10**6), law()
    found, trace = search(Goal("max_drop", limit), trial_of(size, score), start)
    share = limit / (REFERENCE - limit)
    ideal = size(share**1.25)
    assert REFERENCE - found.score <= limit + 1e-9
    assert ideal * 0.999 <= found.bytes <= 1.08 * ideal
    assert len(trace.trials) <= 12


def test_noisy_scores_give_a_point_that_was_evaluated_and_fits():
    goal, size = Goal("max_drop", 0.005), law()
    for seed in range(50):
        evaluate = trial_of(size, scorer(2.0 ** (seed % 9 - 4), noise=0.003))
        found, trace = search(goal, evaluate, 2.0 ** (seed % 7))
        fitting = [t for t in trace.trials if REFERENCE - t.score <= 0.005 + 1e-9]
        assert found in trace.trials
        assert found.bytes == min(t.bytes for t in fitting)
        assert len(trace.trials) <= 12


def test_a_score_that_never_drops_takes_the_smallest_there_is():
    size = law(floor=5e4)
    found, trace = search(Goal("max_drop", 0.0), trial_of(size, lambda slope: REFERENCE))
    assert found.bytes == min(t.bytes for t in trace.trials)
    assert trace.ended == "no larger slope gives another size"
    assert found.bytes <= 1.01 * 5e4


def test_a_drop_out_of_reach_is_an_error_that_says_the_best():
    with pytest.raises(BudgetError, match=r"best score reached is 0\.5 .*float network has 0\.98"):
        search(Goal("max_drop", 0.01), trial_of(law(), lambda slope: 0.5))


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_a_score_that_is_no_number_does_not_fit(bad):
    def score(slope):
        return bad if slope > 0.01 else REFERENCE

    found, _ = search(Goal("max_drop", 0.01), trial_of(law(), score))
    assert found.slope <= 0.01


# resuming

GOALS = [Goal("target_bytes", 3e4), Goal("max_drop", 0.005)]


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.kind)
def test_a_search_stopped_anywhere_and_resumed_ends_the_same(goal):
    evaluate = trial_of(law(noise=0.01), scorer(noise=0.001))
    whole, reference = search(goal, evaluate, 1e-4)
    for stop in range(1, len(reference.trials)):
        trace, calls = Trace(goal.to_dict(), reference=REFERENCE), []

        def dying(slope, calls=calls, stop=stop):
            if len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(slope)
            return evaluate(slope)

        with pytest.raises(KeyboardInterrupt):
            search(goal, dying, 1e-4, trace)
        again = Trace.from_json(trace.to_json())
        found, _ = search(goal, evaluate, 1e-4, again)
        assert found == whole
        assert again.to_json() == reference.to_json()


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.kind)
def test_a_finished_search_evaluates_nothing(goal):
    evaluate = trial_of(law(), scorer())
    whole, trace = search(goal, evaluate)

    def never(slope):
        raise AssertionError(slope)

    found, again = search(goal, never, trace=Trace.from_json(trace.to_json()))
    assert found == whole
    assert again.to_json() == trace.to_json()


def test_more_evaluations_go_on_where_fewer_stopped():
    goal, evaluate = Goal("max_drop", 0.005), trial_of(law(), scorer(1e4))
    few, trace = search(goal, evaluate, evaluations=5)
    assert trace.ended == "all 5 evaluations are used up"
    assert len(trace.trials) == 5
    more, trace = search(goal, evaluate, trace=trace)
    assert more.bytes < few.bytes
    assert trace.trials[:5] == search(goal, evaluate, evaluations=5)[1].trials


def test_the_best_so_far_when_the_time_is_over():
    now = [0.0]
    inner = trial_of(law(), scorer(1e4))

    def evaluate(slope):
        now[0] += 1.0
        return inner(slope)

    means = {"seconds": 3.5, "clock": lambda: now[0]}
    _, trace = search(Goal("max_drop", 0.005), evaluate, **means)
    assert len(trace.trials) == 3
    assert trace.ended == "the time budget of 3.5 s is used up"
    now[0] = 0.0
    _, trace = search(Goal("max_drop", 0.005), evaluate, **{**means, "seconds": 1e-9})
    assert len(trace.trials) == 1


def test_every_trial_is_noted_when_it_is_done():
    noted = []
    trace = Trace({})
    search = SlopeSearch(Goal("target_bytes", 3e4), 1.0, trace, on_trial=noted.append)
    search.run(trial_of(law()))
    assert noted == [*trace.trials, None]


# traces and goals


def test_a_trace_prints_as_a_table():
    found, trace = search(Goal("target_bytes", 3e4), trial_of(law(), scorer()))
    lines = str(trace).splitlines()
    assert lines[0].split() == ["slope", "bytes", "bits/weight", "score", "seconds"]
    (marked,) = [line for line in lines if line.lstrip().startswith("*")]
    assert f"{found.bytes:,}" in marked
    assert lines[-1] == "met within 1%"
    data = trace.to_dict()
    assert [t["chosen"] for t in data["trials"]].count(True) == 1
    assert json.loads(trace.to_json()) == data


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": "fewbits.trace/1"}',
        '{"schema": "fewbits.trace/1", "goal": {}, "trials": [3]}',
        '{"schema": "fewbits.trace/1", "goal": {}, "trials": [{}]}',
        '{"schema": "fewbits.trace/1", "goal": {}, "trials": [{"slope": -1, "bytes": 2, '
        '"bits_per_weight": 1, "score": null, "seconds": 0}]}',
    ],
)
def test_what_is_no_trace(text):
    with pytest.raises(ConfigError):
        Trace.from_json(text)


def test_one_goal_at_a_time():
    assert Goal.of() is None
    assert Goal.of(target_bits=2) == Goal("target_bits", 2.0)
    assert str(Goal.of(66200)) == "at most 66,200 bytes"
    with pytest.raises(ConfigError, match="target_bytes and max_drop are given together"):
        Goal.of(target_bytes=3, max_drop=0.1)
    for bad in (0, -1, math.nan, math.inf, "three", True):
        with pytest.raises(ConfigError, match=r"^target_bytes takes"):
            Goal.of(target_bytes=bad)
    with pytest.raises(ConfigError, match=r"^max_drop takes"):
        Goal.of(max_drop=-0.1)
    assert Goal.of(max_drop=0) == Goal("max_drop", 0.0)


def test_the_first_move_is_the_start():
    assert next_move(Goal("target_bytes", 1e4), 0.125, [], None).slope == 0.125
