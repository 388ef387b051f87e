"""Sizes, drops and durations as people write them: 100KB, 0.5%, 10m."""

from __future__ import annotations

import math
import re

from ..errors import ConfigError, is_number, shorten

__all__ = ["as_bytes", "as_drop", "as_seconds"]

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SECONDS = {"": 1, "S": 1, "M": 60, "MIN": 60, "H": 3600}


def as_bytes(value: object, name: str = "target_bytes") -> float:
    """Read a size in bytes: a number, or a text such as "100KB" (1,000 bytes each) or "64KiB".

    Raises:
        ConfigError: neither, or less than a byte; the message has ``name``.
    """
    number = _number(value, _SIZES)
    if number is None or not 1 <= number < math.inf:
        raise ConfigError(
            f"{name} takes a number of bytes: 66200, 100KB, 0.1MB, 64KiB. Got {shorten(value)}."
        )
    return number


def as_drop(value: object, name: str = "max_drop") -> float:
    """Read a drop of the score: a number, or a text such as "0.5%" (points of accuracy: 0.005).

    Raises:
        ConfigError: neither, or below 0; a text beyond 1, or that is likely meant in points.
    """
    if not isinstance(value, str):
        if is_number(value) and value >= 0:
            return float(value)
        raise ConfigError(f"{name} takes a number >= 0, or a text: 0.5%. Got {shorten(value)}.")
    number = _number(value.strip().removesuffix("%"), {"": 1})
    percent = value.strip().endswith("%")
    share = None if number is None else number / (100 if percent else 1)
    if share is None or not 0 <= share <= 1:
        raise ConfigError(f"{name} takes points of accuracy: 0.5%. Got {shorten(value)}.")
    if share >= 0.1 and not percent:
        raise ConfigError(
            f"{name} {value} means {share:.0%} of all samples. Write {value}% for {value} points, "
            f"or {100 * share:g}% if you mean it."
        )
    return share


def as_seconds(value: object, name: str = "time_budget") -> float:
    """Read a duration in seconds: a number, or a text such as "90s", "10m", "2h".

    Raises:
        ConfigError: neither, or not above 0.
    """
    number = _number(value, _SECONDS)
    if number is None or number <= 0:
        raise ConfigError(f"{name} takes a duration: 90s, 10m, 2h. Got {shorten(value)}.")
    return number


def _number(value: object, units: dict[str, int]) -> float | None:
    if not isinstance(value, str):
        return float(value) if is_number(value) else None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in units:
        return None
    return float(match[1]) * units[match[2].upper()]
