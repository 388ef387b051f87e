"""Lines of progress and the time left, by a clock that the test moves."""

from __future__ import annotations

import pytest

from fewbits.cli.console.progress import Lines, Pace, duration, progress_bars
from fewbits.progress import ProgressEvent, silent


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def told():
    """A clock, a listener and what it told."""
    clock, lines = Clock(), []
    return clock, Lines(lines.append, clock), lines


def test_a_line_a_minute_says_what_how_far_and_how_long(told):
    clock, listen, lines = told
    listen(ProgressEvent("quantize", 0, 40))
    for done in range(1, 21):
        clock.now += 10
        listen(ProgressEvent("quantize", done, 40, f"layers.{done}"))
    assert lines == [
        "quantize: 6 of 40 (layers.6), about 6 min left",
        "quantize: 12 of 40 (layers.12), about 5 min left",
        "quantize: 18 of 40 (layers.18), about 4 min left",
    ]


def test_nothing_is_told_of_what_takes_less_than_a_minute(told):
    clock, listen, lines = told
    for done in range(41):
        clock.now += 1
        listen(ProgressEvent("quantize", done, 40))
    assert lines == []


def test_the_stage_that_began_first_comes_first(told):
    clock, listen, lines = told
    listen(ProgressEvent("search", 0, 4))
    for trial in range(1, 3):
        for done in range(3):
            clock.now += 15
            listen(ProgressEvent("quantize", done, 3))
        listen(ProgressEvent("search", trial, 4, "slope 1"))
    clock.now += 30
    listen(ProgressEvent("quantize", 0, 3))
    assert lines == [
        "search: 1 of 4 (slope 1), about 3 min left; quantize: 0 of 3",
        "search: 2 of 4 (slope 1), about 2 min left; quantize: 0 of 3",
    ]


def test_what_is_done_is_not_told_again(told):
    clock, listen, lines = told
    listen(ProgressEvent("evaluate", 3, 0))
    listen(ProgressEvent("quantize", 1, 2))
    listen(ProgressEvent("quantize", 2, 2))
    clock.now += 60
    listen(ProgressEvent("train", 5, 0))
    assert lines == ["train: 5 done"]


def test_a_resumed_stage_counts_from_where_it_began():
    pace = Pace(started=0.0, done=90)
    assert pace.left(ProgressEvent("quantize", 90, 100), 50.0) == ""
    assert pace.left(ProgressEvent("quantize", 92, 100), 60.0) == "4 min left"
    assert pace.left(ProgressEvent("quantize", 100, 100), 60.0) == ""


def test_durations():
    assert [duration(s) for s in (0.4, 59, 60, 3599, 3601, 7500)] == [
        *("0 s", "59 s", "1 min", "1 h 0 min", "1 h 0 min", "2 h 5 min")
    ]


def test_lines_go_to_standard_error_and_not_beside_json(capsys):
    clock = Clock()
    with progress_bars(clock=clock) as listen:
        listen(ProgressEvent("quantize", 0, 2))
        clock.now += 61
        listen(ProgressEvent("quantize", 1, 2))
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err == "quantize: 1 of 2, about 1 min left\n"
    with progress_bars(quiet=True, clock=clock) as listen:
        assert listen is silent


def test_bars_in_a_terminal_show_the_time_left(monkeypatch):
    import io

    from rich.console import Console

    from fewbits.cli.console import progress

    screen, clock = io.StringIO(), Clock()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    with progress_bars(quiet=True, clock=clock) as listen:
        listen(ProgressEvent("quantize", 0, 10))
        clock.now += 120
        listen(ProgressEvent("quantize", 1, 10, "layers.0"))
    shown = screen.getvalue()
    assert "1/10" in shown
    assert "18 min left" in shown
    assert "layers.0" in shown
