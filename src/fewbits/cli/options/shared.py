"""Options that several verbs have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ...coding import EFFORTS
from ...errors import shorten
from ...search import as_bytes
from .budget import quantity

__all__ = [
    "BatchSize",
    "CalibrationSamples",
    "Data",
    "Effort",
    "MethodSettings",
    "Network",
    "NetworkOrNone",
    "OutFile",
    "RecipeSeed",
    "Seed",
    "Weights",
    "check_effort",
    "numbers",
    "sizes",
    "whole_numbers",
    "words",
]


_SOURCES = (
    "module:callable, builtin:NAME, transformers:NAME, timm:NAME or torchvision:NAME. See "
    "docs/sources.md."
)

Network: TypeAlias = Annotated[str, typer.Argument(help=_SOURCES)]
NetworkOrNone: TypeAlias = Annotated[str | None, typer.Argument(help=_SOURCES)]
OutFile: TypeAlias = Annotated[Path | None, typer.Option("-o", "--out", help="The file to write.")]
Weights: TypeAlias = Annotated[
    Path | None, typer.Option(help="Checkpoint to load: .safetensors, .pt or .pth.")
]
Data: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="digits, npz:FILE, idx:FOLDER, folder:PATH, datasets:NAME or module:callable; a path "
        "alone will do. See docs/sources.md."
    ),
]
MethodSettings: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="key=value of the method; repeat.", rich_help_panel="How to compress"
    ),
]
CalibrationSamples: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Training samples for calibration.")
]
BatchSize: TypeAlias = Annotated[int, typer.Option(min=1, help="Samples per batch.")]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Of every random choice.")]
RecipeSeed: TypeAlias = Annotated[
    int | None, typer.Option(min=0, help="Of every random choice. \\[default: the recipe's]")
]
Effort: TypeAlias = Annotated[str, typer.Option(help="Of coding: fast, balanced, smallest.")]


def check_effort(effort: str) -> None:
    """Refuse an effort that there is not.

    Raises:
        typer.BadParameter: names those that there are.
    """
    if effort not in EFFORTS:
        raise typer.BadParameter(f"--effort is one of {', '.join(EFFORTS)}, not {shorten(effort)}.")


def words(option: str, text: str) -> list[str]:
    """Read names."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise typer.BadParameter(f"{option} takes values with commas between. Got {shorten(text)}.")
    return list(dict.fromkeys(found))


def whole_numbers(option: str, text: str) -> list[int]:
    """Read whole numbers."""
    found = words(option, text)
    if not all(part.isdecimal() for part in found):
        raise typer.BadParameter(f"{option} takes whole numbers: 2,3,4. Got {shorten(text)}.")
    return [int(part) for part in found]


def numbers(option: str, text: str) -> list[float]:
    """Read numbers > 0."""
    try:
        found = [float(part) for part in words(option, text)]
    except ValueError:
        found = [-1.0]
    if not all(0 < number < math.inf for number in found):
        raise typer.BadParameter(f"{option} takes numbers > 0: 1e-4,1e-3. Got {shorten(text)}.")
    return found


def sizes(option: str, text: str) -> list[int]:
    """Read sizes in bytes."""
    return [int(quantity(as_bytes, part, option)) for part in words(option, text)]
