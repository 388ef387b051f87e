"""Progress bars on standard error in a terminal; nothing in a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

from ...progress import Progress, ProgressEvent, silent

__all__ = ["progress_bars"]


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Yield a progress listener that draws one bar per stage while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        # Training metrics are long: let them be truncated rather than the bar.
        TextColumn(
            "{task.fields[detail]}", style="dim", table_column=Column(no_wrap=True, ratio=1)
        ),
    )
    with Bars(
        *columns, console=console, transient=True, redirect_stdout=False, expand=True
    ) as bars:
        tasks = {}

        def listen(event: ProgressEvent) -> None:
            total = event.total or None
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(event.stage, total=total, detail="")
            elif event.done == 0:
                bars.reset(tasks[event.stage], total=total)
            bars.update(tasks[event.stage], completed=event.done, total=total, detail=event.detail)

        yield listen
