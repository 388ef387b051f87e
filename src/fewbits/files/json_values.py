"""JSON read as untrusted input: bounded size and depth, finite numbers, no duplicate keys."""

from __future__ import annotations

import json
import math
from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import ConfigError, shorten

__all__ = ["MAX_LENGTH", "read_json", "read_text"]

MAX_LENGTH = 1 << 24  # characters of a document
MAX_DEPTH = 32
_MAX_NUMBER = 64  # characters


def read_json(text: str) -> Any:
    """Parse a JSON document in time and memory proportional to its length.

    Raises:
        ConfigError: not valid JSON, too long, nested too deeply, with a duplicate key, or with a
            number that is infinite or longer than 64 characters.
    """
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"must be JSON of at most {MAX_LENGTH:,} characters.")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            parse_constant=_reject_constant,
        )
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise ConfigError(f"must be JSON: {problem}.") from None
    return value


def read_text(path: str | PathLike[str]) -> str:
    """Return a file's text for :func:`read_json`, reading just enough to see that it is too long.

    Raises:
        OSError: the file cannot be read.
        ConfigError: the file is not UTF-8.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.read(MAX_LENGTH + 1)
    except UnicodeDecodeError as error:
        raise ConfigError(f"must be JSON in UTF-8: {error}.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        duplicate = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {shorten(duplicate)} occurs twice in one object")
    return result


def _bounded_int(text: str) -> int:
    if len(text) > _MAX_NUMBER:
        raise ValueError(f"an integer has {len(text):,} characters; at most {_MAX_NUMBER} allowed")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text) if len(text) <= _MAX_NUMBER else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {shorten(text)} is too large or too long")
    return value


def _reject_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _check_depth(value: Any) -> None:
    """Check the nesting level by level, so that the stack does not grow with it."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
