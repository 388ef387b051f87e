"""Options shared by several verbs, and parsers of their lists."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ...coding import EFFORTS
from ...errors import shorten
from ...search import as_bytes, as_drop
from .budget import quantity

__all__ = [
    "BatchSize",
    "Calibration",
    "CalibrationSamples",
    "Data",
    "Effort",
    "MethodSettings",
    "Network",
    "NetworkOrNone",
    "OutFile",
    "RecipeSeed",
    "ReportFile",
    "Seed",
    "Weights",
    "check_effort",
    "drops",
    "numbers",
    "sizes",
    "whole_numbers",
    "words",
]


_SOURCES = (
    "The network: module:callable, builtin:NAME, transformers:NAME, timm:NAME or "
    "torchvision:NAME. See docs/sources.md."
)

Network: TypeAlias = Annotated[str, typer.Argument(help=_SOURCES)]
NetworkOrNone: TypeAlias = Annotated[str | None, typer.Argument(help=_SOURCES)]
OutFile: TypeAlias = Annotated[Path | None, typer.Option("-o", "--out", help="The file to write.")]
Weights: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Checkpoint to load into it: .safetensors, .pt or .pth, or a folder with one. Its "
        "float16 and bfloat16 stay."
    ),
]
Data: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="The data: digits, npz:FILE, text:FILE, idx:FOLDER, folder:PATH, datasets:NAME or "
        "module:callable. A bare path works too. See docs/sources.md."
    ),
]
MethodSettings: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Setting of the method, as key=value; may be repeated. 'fewbits methods NAME' lists "
        "them.",
        rich_help_panel="How to compress",
    ),
]
CalibrationSamples: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Number of training samples to calibrate on.")
]
BatchSize: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Samples per batch. \\[default: 128, or 8 of text]")
]
Calibration: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Data used for calibration only, such as text:FILE:tokens=512,samples=128. "
        "\\[default: the training split of --data]"
    ),
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Random seed.")]
RecipeSeed: TypeAlias = Annotated[
    int | None, typer.Option(min=0, help="Random seed. \\[default: the recipe's]")
]
Effort: TypeAlias = Annotated[
    str, typer.Option(help="How hard to work on coding: fast, balanced or smallest.")
]
ReportFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--report",
        help="Also write a report for people: one .html file with charts, which replaces an old "
        "one.",
    ),
]


def check_effort(effort: str) -> None:
    """Refuse an unknown coding effort.

    Raises:
        typer.BadParameter: lists the valid ones.
    """
    if effort not in EFFORTS:
        raise typer.BadParameter(
            f"--effort must be one of {', '.join(EFFORTS)}. Got {shorten(effort)}."
        )


def words(option: str, text: str) -> list[str]:
    """Parse a comma-separated list of names, without duplicates."""
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise typer.BadParameter(f"{option} takes values separated by commas. Got {shorten(text)}.")
    return list(dict.fromkeys(names))


def whole_numbers(option: str, text: str) -> list[int]:
    """Parse a comma-separated list of whole numbers."""
    parts = words(option, text)
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(
            f"{option} takes whole numbers, such as 2,3,4. Got {shorten(text)}."
        )
    return [int(part) for part in parts]


def numbers(option: str, text: str) -> list[float]:
    """Parse a comma-separated list of numbers > 0."""
    try:
        values = [float(part) for part in words(option, text)]
    except ValueError:
        values = [-1.0]
    if not all(0 < value < math.inf for value in values):
        raise typer.BadParameter(
            f"{option} takes numbers > 0, such as 1e-4,1e-3. Got {shorten(text)}."
        )
    return values


def sizes(option: str, text: str) -> list[int]:
    """Parse a comma-separated list of sizes, such as 60KB,80KB, into bytes."""
    return [int(quantity(as_bytes, part, option)) for part in words(option, text)]


def drops(option: str, text: str) -> list[str]:
    """Check a comma-separated list of drops in accuracy, such as 0.5%,1%; return them as texts."""
    parts = words(option, text)
    for part in parts:
        quantity(as_drop, part, option)
    return parts
