"""Canonical JSON: one text per value, read with every bound that a hostile text can strain."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

from ..errors import ConfigError, CorruptFileError

__all__ = ["MAX_DEPTH", "check_json", "dump_json", "parse_json"]

MAX_DEPTH = 32
MAX_DIGITS = 64
# Without escapes, a quote always ends a string or begins one: both patterns take time in proportion
# to the text, also where a string has no end. An escape outside of strings is no JSON anyway.
ESCAPES = re.compile(rb"\\.", re.DOTALL)
STRINGS = re.compile(rb'"[^"]*"?')
STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # 1 and -1
NO_BRACKETS = bytes(code for code in range(256) if code not in b"[{]}")


def dump_json(value: object) -> bytes:
    """Return the canonical text of ``value``: sorted keys, no spaces, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def parse_json(text: bytes) -> Any:
    """Return the value of ``text``; CorruptFileError for all that :func:`dump_json` never writes.

    Nesting is measured before parsing, so a text of brackets cannot exhaust the stack. Time and
    memory are in proportion to the text.
    """
    if _depth(text) > MAX_DEPTH:
        raise CorruptFileError(f"the header is nested deeper than {MAX_DEPTH}")
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"the header is not JSON: {error}") from error


def _depth(text: bytes) -> int:
    """Return how deep brackets outside of strings are nested in ``text``, JSON or not."""
    plain = STRINGS.sub(b"", ESCAPES.sub(b"", text))
    brackets = np.frombuffer(plain.translate(STEPS, NO_BRACKETS), np.int8)
    return int(np.cumsum(brackets, dtype=np.int32).max(initial=0))


def check_json(value: object, where: str, depth: int = 4) -> None:
    """Raise ConfigError unless ``value`` is plain JSON that reads back equal."""
    if depth > MAX_DEPTH:
        raise ConfigError(f"{where} is nested deeper than {MAX_DEPTH - 4} levels. Flatten it.")
    if type(value) is list:
        for position, item in enumerate(value):
            check_json(item, f"{where}[{position}]", depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise ConfigError(f"{where} has the key {key!r}. Keys must be strings.")
            _check_text(key, f"a key of {where}")
            check_json(item, f"{where}[{key!r}]", depth + 1)
    else:
        _check_scalar(value, where)


def _check_scalar(value: object, where: str) -> None:
    if value is None or type(value) is bool:
        return
    if type(value) is str:
        _check_text(value, where)
    elif type(value) is int:
        if abs(value) >= 10 ** (MAX_DIGITS - 1):
            raise ConfigError(f"{where} is an integer of more than {MAX_DIGITS} characters")
    elif type(value) is float:
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value!r}. JSON has no such number: use None or text.")
    else:
        raise ConfigError(
            f"{where} is a {type(value).__name__}. A file holds None, bool, int, float, str, "
            "lists and dicts of those: convert it first."
        )


def _check_text(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where} cannot be written as UTF-8: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def _bounded_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number beyond float64")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"the constant {text}")
