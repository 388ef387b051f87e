"""The command line application; ``--json`` covers even errors raised before a verb runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from .console.outcome import print_error
from .verbs.completion import completion
from .verbs.compress import compress
from .verbs.decode import decode
from .verbs.demo import demo
from .verbs.evaluate import evaluate
from .verbs.export import export
from .verbs.inspect import inspect
from .verbs.methods import methods
from .verbs.sensitivity import sensitivity
from .verbs.sweep import sweep
from .verbs.train import train

__all__ = ["Group", "app"]


class Group(TyperGroup):
    """Command group that reports every failure as one JSON object when ``--json`` is given."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the verb named by ``args`` (or by ``sys.argv``) and exit with its code."""

        def run(standalone: bool) -> Any:
            return super(Group, self).main(
                args, prog_name, complete_var, standalone, windows_expand_args, **extra
            )

        if not standalone_mode or "--json" not in (sys.argv[1:] if args is None else args):
            return run(standalone_mode)
        try:
            code = run(False)
        except Exception as error:
            code = _report(error)
        sys.exit(code)


def _report(error: Exception) -> int:
    # Duck typing: usage errors are Click's in older versions of Typer, and Typer's own in newer.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        print_error("UsageError", format_message())
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, typer.Abort):
        print_error("Abort", "aborted")
    else:
        print_error(
            type(error).__name__,
            f"internal error: {error}. Please report it, with the traceback that the same command "
            "prints without --json.",
        )
    return 1


app = typer.Typer(
    cls=Group,
    help="Compress any trained PyTorch network to the smallest file at the accuracy you want.\n\n"
    "Start with [bold]fewbits demo[/bold]: it trains a small network and compresses it with every "
    "method that needs no training.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"fewbits {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _verb in (
    demo,
    compress,
    train,
    sweep,
    sensitivity,
    evaluate,
    inspect,
    decode,
    export,
    methods,
    completion,
):
    app.command(_verb.__name__)(_verb)
