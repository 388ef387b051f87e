"""Progress on standard error: bars in a terminal, a line a minute elsewhere, with the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

from ...progress import Progress, ProgressEvent, silent
from .outcome import note

__all__ = ["Lines", "Pace", "duration", "progress_bars"]

_MINUTE = 60.0
Clock = Callable[[], float]


@contextmanager
def progress_bars(*, quiet: bool = False, clock: Clock = time.monotonic) -> Iterator[Progress]:
    """Yield a progress listener for the block: one bar per stage, or a line a minute.

    Where standard error is no terminal, ``quiet`` leaves the lines out.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent if quiet else Lines(note, clock)
        return
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        # Training metrics are long: let them be truncated rather than the bar.
        TextColumn(
            "{task.fields[detail]}", style="dim", table_column=Column(no_wrap=True, ratio=1)
        ),
    )
    with Bars(
        *columns, console=console, transient=True, redirect_stdout=False, expand=True
    ) as bars:
        tasks = {}
        paces: dict[str, Pace] = {}

        def listen(event: ProgressEvent) -> None:
            total = event.total or None
            left = _pace_of(paces, event, clock()).left(event, clock())
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(event.stage, total=total, detail="", left="")
            elif event.done == 0:
                bars.reset(tasks[event.stage], total=total)
            bars.update(
                tasks[event.stage],
                completed=event.done,
                total=total,
                detail=event.detail,
                left=left,
            )

        yield listen


@dataclass(frozen=True)
class Pace:
    """When a stage was first heard of, and how much was done by then, such as in an earlier run."""

    started: float
    done: int

    def left(self, event: ProgressEvent, now: float) -> str:
        """Return the time that the rest takes if it goes on like this; "" if unknown or over."""
        done = event.done - self.done
        if done < 1 or not event.done < event.total:
            return ""
        return f"{duration((now - self.started) / done * (event.total - event.done))} left"


class Lines:
    """A progress listener that tells how far things are, at most once a minute.

    The stage that began first comes first: the time it has left is that of the whole.
    """

    def __init__(self, tell: Callable[[str], None], clock: Clock = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._next = clock() + _MINUTE
        self._paces: dict[str, Pace] = {}
        self._running: dict[str, ProgressEvent] = {}

    def __call__(self, event: ProgressEvent) -> None:
        """Take note of an event, and tell of it if a minute has passed."""
        now = self._clock()
        _pace_of(self._paces, event, now)
        self._running = {k: v for k, v in self._running.items() if v.total or k == event.stage}
        self._running[event.stage] = event
        if now >= self._next:
            self._next = now + _MINUTE
            self._tell("; ".join(self._told(one, now) for one in self._running.values()))
        if event.total and event.done >= event.total:
            del self._running[event.stage]

    def _told(self, event: ProgressEvent, now: float) -> str:
        far = f"{event.done:,} of {event.total:,}" if event.total else f"{event.done:,} done"
        detail = f" ({event.detail})" if event.detail else ""
        left = self._paces[event.stage].left(event, now)
        return f"{event.stage}: {far}{detail}{left and f', about {left}'}"


def _pace_of(paces: dict[str, Pace], event: ProgressEvent, now: float) -> Pace:
    """Return the pace of a stage, which starts anew where the stage does."""
    if event.stage not in paces or event.done <= paces[event.stage].done:
        paces[event.stage] = Pace(now, event.done)
    return paces[event.stage]


def duration(seconds: float) -> str:
    """Return a duration to the minute, or to the second below a minute: "2 h 5 min", "40 s"."""
    if seconds < _MINUTE:
        return f"{round(seconds)} s"
    hours, minutes = divmod(round(seconds / _MINUTE), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
