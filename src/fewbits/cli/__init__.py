"""The command line: ``fewbits VERB ...``. One file per verb; ``main`` is the entry point."""

from __future__ import annotations

__all__ = ["EXIT_CODES", "main"]

# The same for every verb, with --json or without; tests/contract/test_exit_codes.py holds it.
EXIT_CODES = {
    0: "success",
    1: "an error, reported in one line: a file, network, data or folder is missing, damaged or of "
    "the wrong kind; an output exists already, or has the wrong ending; a network or data that "
    "the method cannot use; a fault in user code",
    2: "wrong usage, whatever the files are: an unknown verb or option; an argument is missing, or "
    "data that the method needs; the value of an option is unknown or out of range; options that "
    "contradict each other",
    3: "the accuracy or budget asked for is not met",
    130: "interrupted",
}


def main() -> None:
    """Run the command line and exit with one of ``EXIT_CODES``."""
    from .app import app  # noqa: PLC0415  (importing fewbits.cli stays free of Typer)

    app(prog_name="fewbits")
