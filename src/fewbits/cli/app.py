"""The verbs under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .compress import compress
from .decode import decode
from .demo import demo
from .evaluate import evaluate
from .export import export
from .group import Group
from .inspect import inspect
from .methods import methods
from .sensitivity import sensitivity
from .sweep import sweep
from .train import train

__all__ = ["app"]

app = typer.Typer(
    cls=Group,
    help="The smallest file at a wanted accuracy, from any trained PyTorch network.\n\n"
    "Begin with [bold]fewbits demo[/bold]: it trains a small network, and compresses it with every "
    "method that needs no training.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
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
):
    app.command(_verb.__name__)(_verb)
