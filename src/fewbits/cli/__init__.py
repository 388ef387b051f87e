"""The command line: ``fewbits VERB ...``. One file per verb; ``main`` is the entry point."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit.

    Exit codes: 0 success, 1 an error, reported in one line, 2 wrong usage, 3 the accuracy or budget
    asked for is not met, 130 interrupted.
    """
    from .app import app  # noqa: PLC0415  (importing fewbits.cli stays free of Typer)

    app(prog_name="fewbits")
