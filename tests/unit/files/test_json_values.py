"""JSON from a file: finite, bounded, every key once; traces, sweeps and runs are read by it."""

from __future__ import annotations

import json
import math
import random
from contextlib import suppress

import pytest

from cpu_time import within
from fewbits.cli.jobs.run_folder import RunRequest
from fewbits.errors import ConfigError, SourceError
from fewbits.files.json_values import read_json, read_text
from fewbits.search import Goal, Sweep, Trace, Trial, next_move

HOSTILE = {
    "empty": "",
    "cut": '{"a": [1, 2',
    "two": "{} {}",
    "lists": "[" * 100_000,
    "sound and deep": "[" * 500 + "]" * 500,
    "just too deep": "[" * 33 + "]" * 33,
    "objects": '{"a":' * 50_000,
    "infinite": '{"a": 1e400}',
    "minus infinite": "[-1e999]",
    "constant": "[NaN]",
    "other constant": "-Infinity",
    "integer": "[" + "9" * 5000 + "]",
    "fraction": "[0." + "1" * 200 + "]",
    "key twice": '{"a": 1, "b": {"c": 1, "c": 2}}',
    "control": '"a\x00b"',
    "long": " " * (2**24 + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_read(name):
    with within(2):
        with pytest.raises(ConfigError, match="must be JSON") as error:
            read_json(HOSTILE[name])
        assert len(str(error.value)) < 300
        for reader in (Trace.from_json, lambda text: Sweep.from_json(text, {})):
            with pytest.raises(ConfigError, match="must be JSON"):
                reader(HOSTILE[name])


def test_values_are_read_as_they_are():
    value = {"a": [1, -2.5, 1e-300, True, None, "\u00e9"], "b": {"c": [[[]]]}}
    assert read_json(json.dumps(value)) == value
    assert read_json("[" * 32 + "]" * 32)


def test_no_more_of_a_file_is_read_than_tells_that_it_is_too_long(tmp_path):
    (tmp_path / "long").write_bytes(b" " * (2**24 + 100))
    assert len(read_text(tmp_path / "long")) == 2**24 + 1
    (tmp_path / "latin").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_text(tmp_path / "latin")


TRIAL = Trial(0.5, 100, 2.0, 0.75, 1.0)
SOUND = Trace({"kind": "max_drop"}, "key", 0.9, [TRIAL, Trial(1.0, 90, 1.8, 0.7)], 0, "done")
ODD = [True, False, -1, 2**70, "1", "inf", [], {}, [[1]], -0.5]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None, 0.5, 1])
def test_every_score_survives_a_trace_of_plain_json(score):
    text = Trace({}, trials=[Trial(0.5, 100, 2.0, score)]).to_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert repr(Trace.from_json(text).trials[0].score) == repr(score and float(score))


@pytest.mark.parametrize("key", ["slope", "bytes", "bits_per_weight", "score", "seconds", "chosen"])
def test_a_trial_of_another_kind_is_refused(key):
    taken = {"score": [-1, 2**70, "inf", -0.5], "chosen": [True, False]}
    taken |= {name: [2**70] for name in ("slope", "seconds")}
    for value in ODD:
        data = SOUND.to_dict()
        data["trials"][1][key] = value
        if key == "chosen":
            data["trials"][0][key] = False
        if (type(value), value) in [(type(one), one) for one in taken.get(key, [])]:
            Trace.from_json(json.dumps(data))
            continue
        with pytest.raises(ConfigError, match="trial"):
            Trace.from_json(json.dumps(data))
    data = SOUND.to_dict()
    del data["trials"][0][key]
    if key != "chosen":
        with pytest.raises(ConfigError, match="not a trial"):
            Trace.from_json(json.dumps(data))


@pytest.mark.parametrize("slopes", [(0.5, 0.5), (1e10, math.nextafter(1e10, 0))])
def test_a_slope_that_is_there_twice_gives_no_direction(slopes):
    again = Trace({}, trials=[Trial(slope, 90, 1.8, 0.7) for slope in slopes])
    with pytest.raises(ConfigError, match="every slope once"):
        Trace.from_json(again.to_json())


def test_whatever_a_trace_holds_the_search_goes_on():
    draw, values = random.Random(0), [5e-324, 1e-300, 1e-11, 1.0, 1 + 2e-16, 1e11, 1.7e308]
    for _ in range(5000):
        trials = [
            Trial(draw.choice(values), draw.choice([1, 2**62]), draw.choice(values),
                  draw.choice([None, math.nan, math.inf, 1e308, 0.5]))
            for _ in range(draw.randrange(5))
        ]  # fmt: skip
        goal = Goal(draw.choice(["target_bytes", "target_bits", "max_drop"]), draw.choice(values))
        with suppress(ConfigError):
            trace = Trace.from_json(Trace(goal.to_dict(), "", 0.5, trials).to_json())
            next_move(goal, draw.choice(values), trace.trials, trace.reference)


def test_a_trace_has_one_chosen_trial_and_texts():
    for key, value in [("key", 1), ("ended", None), ("goal", []), ("reference", "x"),
                       ("trials", {}), ("trials", [1]), ("schema", [])]:  # fmt: skip
        with pytest.raises(ConfigError, match="trace"):
            Trace.from_json(json.dumps({**SOUND.to_dict(), key: value}))
    data = SOUND.to_dict()
    data["trials"][1]["chosen"] = True
    with pytest.raises(ConfigError, match="one chosen trial"):
        Trace.from_json(json.dumps(data))


def test_a_sweep_of_other_types_is_refused():
    point = {"settings": {"method": "gpfq"}, "goal": None, "bytes": 9, "score": 0.5}
    wrong = [{"settings": []}, {"settings": {"method": 1}}, {"goal": 3}, {"goal": {"limit": "x"}}]
    wrong += [{"bytes": "9"}, {"score": []}, {"seconds": True}]
    for change in wrong:
        data = {**Sweep({}, {"bytes": 1, "score": 1}).to_dict(), "points": [{**point, **change}]}
        with pytest.raises(ConfigError, match="list of points"):
            Sweep.from_json(json.dumps(data), {})
    data["float"] = {"bytes": None, "score": 1}
    with pytest.raises(ConfigError, match="bytes and score"):
        Sweep.from_json(json.dumps(data), {})


RUN = {
    "model": "builtin:digits-mlp", "weights": None, "data": "digits", "selection": None,
    "start": None, "recipe": {"rules": []}, "out": "net.fewbits",
}  # fmt: skip


@pytest.fixture
def run_file(tmp_path):
    RunRequest(**RUN, folder=str(tmp_path)).save()
    return tmp_path / "run.json"


def test_a_run_comes_back_as_it_was(run_file):
    assert RunRequest.load(run_file.parent) == RunRequest(**RUN, folder=str(run_file.parent))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_run_that_is_no_json(name, run_file):
    run_file.write_text(HOSTILE[name])
    with pytest.raises(SourceError, match=r"run\.json: cannot be read: .*Start a new run"):
        RunRequest.load(run_file.parent)


def test_a_run_of_other_types_is_refused(run_file):
    sound = json.loads(run_file.read_text())
    assert len(sound) == 16
    for key in sound:
        for value in ([1], {"a": []}, -7, None):
            if value is None and key in ("weights", "selection", "start"):
                continue
            if key == "recipe" and isinstance(value, dict):
                continue
            run_file.write_text(json.dumps({**sound, key: value}))
            with pytest.raises(SourceError, match="cannot be read") as error:
                RunRequest.load(run_file.parent)
            assert len(str(error.value)) < 500
        run_file.write_text(json.dumps({k: v for k, v in sound.items() if k != key}))
        if key != "metadata":  # which runs begun with an earlier version lack
            with pytest.raises(SourceError, match="cannot be read"):
                RunRequest.load(run_file.parent)
    run_file.write_text(json.dumps({**sound, "more": 1}))
    with pytest.raises(SourceError, match="'more' is missing, unknown or invalid"):
        RunRequest.load(run_file.parent)


def test_random_damage_is_an_error_of_the_kind_or_nothing(run_file):
    sound, draw = run_file.read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        run_file.write_bytes(data)
        with suppress(SourceError):
            assert isinstance(RunRequest.load(run_file.parent).recipe, dict)
