"""``fewbits inspect``: what a file holds and what each part costs, without torch or model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ..container import inspect as look
from ..report import size_table
from .verb import Json, Outcome, verb

__all__ = ["inspect"]


@verb
def inspect(
    file: Annotated[Path, typer.Argument(help="A .fewbits file.")],
    as_json: Json = False,
) -> Outcome:
    """Show every tensor of a file with its bytes; they add up to the file's size.

    Checks the checksums on the way. Runs no code of the model and needs no torch.

    Example: fewbits inspect digits.fewbits
    """
    info = look(file)
    version = ".".join(map(str, info.version))
    lines = [f"{name} is the same tensor as {to}" for name, to in info.aliases.items()]
    lines += [
        f"input of {layer}: {grid.bits} bits, {'signed' if grid.signed else 'unsigned'}, "
        f"clip {grid.clip:g}"
        for layer, grid in info.activations.items()
    ]
    metadata = _as_yaml(dict(info.metadata))
    table = size_table(info.report, f"{file}, format {version}")
    return Outcome(info.to_dict(), (table, *lines, *metadata))


def _as_yaml(metadata: dict[str, Any]) -> list[str]:
    return [yaml.safe_dump(metadata, sort_keys=False).rstrip()] if metadata else []
