"""Options that take several values, with commas between."""

from __future__ import annotations

import math

import typer

from ..errors import shorten
from .budget import as_bytes

__all__ = ["numbers", "sizes", "whole_numbers", "words"]


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
    return [as_bytes(part, option) for part in words(option, text)]
