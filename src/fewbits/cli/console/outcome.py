"""Print the outcome of a verb, and turn its errors into exit codes.

A verb returns an :class:`Outcome` and prints nothing itself. With ``--json`` standard output
receives one JSON object and nothing else; output of user code goes to standard error. Warnings of
fewbits are printed there, one line each, and listed under "warnings" in the JSON object.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeAlias

import typer
from rich.console import Console

from ...coded import Coverage
from ...errors import BudgetError, ConfigError, CoverageWarning, FewbitsError, FewbitsWarning
from ...files.atomic_write import check_target
from ...report import Page, Section, Table, check_report, printable, show
from .ranks import is_first

__all__ = [
    "NOT_MET",
    "DecodeThreads",
    "Force",
    "Json",
    "MaxDecoded",
    "NoMetadata",
    "Outcome",
    "Threads",
    "check_output",
    "mib_to_bytes",
    "note",
    "print_error",
    "verb",
    "warn_low_coverage",
]

P = ParamSpec("P")

NOT_MET = 3
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of text.")
]
MaxDecoded: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--max-decoded-mib",
        min=1,
        help="Refuse a file that decodes to more than this. \\[default: depends on its size]",
    ),
]
Threads: TypeAlias = Annotated[
    int,
    typer.Option(min=0, max=256, help="Threads to encode tensors with; 0 means one per core."),
]
DecodeThreads: TypeAlias = Annotated[
    int,
    typer.Option(min=0, max=256, help="Threads to decode tensors with; 0 means one per core."),
]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Overwrite the output file.")]
NoMetadata: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--no-metadata", help="Leave recipe and source out of the file; saves 50 to 300 bytes."
    ),
]


@dataclass(frozen=True)
class Outcome:
    """The result of a verb: ``data`` for machines, ``shown`` (tables and lines) for people.

    ``silent`` prints nothing; it is set in all processes of a group except the first.
    ``page`` makes the report, where a verb has one.
    """

    data: Mapping[str, Any]
    shown: tuple[Table | str, ...] = ()
    exit_code: int = 0
    silent: bool = False
    page: Callable[[], Page] | None = None


def verb(function: Callable[P, Outcome]) -> Callable[P, None]:
    """Turn a function that takes ``as_json`` and returns an outcome into a command.

    If it takes ``report``, a path, the page of its outcome is written there.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            with redirect_stdout(sys.stderr), _collect_warnings() as collected:
                report: Any = kwargs.get("report")
                if report is not None:
                    check_report(report)
                outcome = function(*args, **kwargs)
                if report is not None:
                    outcome = _reported(outcome, report, collected)
        except BudgetError as error:
            _fail(type(error).__name__, str(error), as_json, NOT_MET)
        except FewbitsError as error:
            _fail(type(error).__name__, str(error), as_json, 1)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _fail(type(error).__name__, f"{where}{error.strerror or error}", as_json, 1)
        except SystemExit as error:
            code = "" if error.code is None else f" with {error.code!r}"
            message = f"the code of the model or the data called sys.exit{code}"
            _fail("SystemExit", message, as_json, 1)
        except KeyboardInterrupt:
            _fail("KeyboardInterrupt", "interrupted", as_json, 130)
        else:
            if collected:
                outcome = replace(outcome, data={**outcome.data, "warnings": collected})
            if not outcome.silent:
                _print(outcome, as_json)
            raise typer.Exit(outcome.exit_code)

    return run


def _reported(outcome: Outcome, path: Path, collected: Sequence[str]) -> Outcome:
    """Write the report, which begins with what is printed; say where it is."""
    if outcome.page is None or outcome.silent:
        return outcome
    told = tuple(part for part in outcome.shown if isinstance(part, str))
    first = (Section("Summary", told), Section("Warnings", tuple(collected)))
    outcome.page().with_first(*first).write(path)
    data = {**outcome.data, "report": str(path)}
    return replace(outcome, data=data, shown=(*outcome.shown, f"report: {path}"))


@contextmanager
def _collect_warnings() -> Iterator[list[str]]:
    """Print warnings of fewbits on standard error, each text once, and yield the list of them."""
    collected: list[str] = []
    default = warnings.showwarning

    def collect(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, FewbitsWarning):
            default(message, category, *where, **more)
        elif str(message) not in collected:
            collected.append(str(message))
            note(f"warning: {printable(str(message))}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", FewbitsWarning)
        warnings.showwarning = collect
        yield collected


def warn_low_coverage(coverage: Coverage, metadata: Mapping[str, Any] | None = None) -> None:
    """Warn if less than half of a network is quantized, unless its file is exact."""
    recipe = (metadata or {}).get("recipe")
    lossless = isinstance(recipe, Mapping) and recipe.get("raw_dtype") == "exact"
    if coverage.warning and not lossless and "delta" not in (metadata or {}):
        warnings.warn(coverage.warning, CoverageWarning, stacklevel=2)


def note(text: str) -> None:
    """Print a line on standard error."""
    typer.echo(text, err=True)


def mib_to_bytes(mib: int | None) -> int | None:
    """Convert MiB to bytes; None stays None."""
    return None if mib is None else mib << 20


def check_output(path: Path, force: bool, *, folder: bool = False) -> None:
    """Refuse, before any work is done, an output that cannot or must not be written.

    Args:
        path: of the output.
        force: whether it may exist.
        folder: whether it is a folder, in which files are written.

    Raises:
        ConfigError: the folder does not exist; the file exists and ``force`` is not given; or the
            path is a device, a FIFO or a socket.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"output folder {str(path.parent)!r} does not exist. Create it first.")
    if folder and path.is_dir():
        if any(path.iterdir()) and not force:
            raise ConfigError(
                f"output {str(path)!r} is a folder with files. Name another, or add --force."
            )
        return
    if path.is_dir():
        raise ConfigError(f"output {str(path)!r} is a folder. Name a file instead.")
    check_target(path)
    if path.exists() and not force:
        raise ConfigError(f"output {str(path)!r} exists. Name another file, or add --force.")


def _print(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_plain(outcome.data), indent=2, allow_nan=False))
        return
    console = Console(soft_wrap=True)
    for part in outcome.shown:
        if isinstance(part, Table):
            show(part, console)
        else:
            typer.echo("\n".join(map(printable, part.split("\n"))))


def print_error(kind: str, message: str) -> None:
    """Print an error as the JSON object on standard output."""
    line = printable(" ".join(message.split()))
    typer.echo(json.dumps({"error": {"type": kind, "message": line}}))


def _fail(kind: str, message: str, as_json: bool, code: int) -> None:
    if as_json and is_first():
        print_error(kind, message)
    else:
        note(f"error: {printable(' '.join(message.split()))}")
    raise typer.Exit(code)


def _plain(value: Any) -> Any:
    """Convert to JSON values; NaN and infinities, which JSON lacks, become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
