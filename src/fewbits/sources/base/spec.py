"""Syntax of sources: ``scheme:target?option=value&option=value``.

Schemes whose options are plain words also take ``scheme:target:option=value,option=value``
(:meth:`Spec.with_short_options`), which needs no quotes in a shell. :meth:`Spec.parsed` converts
options to typed values, so that all schemes report unknown options in the same way.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from ...errors import MissingExtraError, SourceError, did_you_mean, shorten
from ...registry import Registry

__all__ = [
    "HUBS",
    "OptionParser",
    "Spec",
    "as_path",
    "choice",
    "fraction",
    "is_path",
    "module_of_file",
    "natural",
    "numbers",
    "optional_import",
    "parse",
    "resolve",
    "stored_source",
    "switch",
    "text",
    "whole",
]

HUBS = ("transformers",)  # schemes whose targets are names on a hub, or paths

OptionParser: TypeAlias = Callable[[str], Any]
# A single letter before the colon is a drive ("C:\..."), not a scheme.
_SCHEME = re.compile(r"([A-Za-z][\w.-]+):(.*)", re.DOTALL)
_PATH = re.compile(r"\.{0,2}[/\\]|\.{1,2}$|~|[A-Za-z]:[/\\]")
_SHORT = re.compile(r"(.*):(\w+(?:=[^,]*)?(?:,\w+(?:=[^,]*)?)*)", re.DOTALL)
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Spec:
    """A parsed source.

    Attributes:
        text: the source as given, quoted in messages.
        scheme: name in the registry of models or of data.
        target: the part after the scheme: a path, a name or ``module:callable``; may be empty.
        options: the part after the question mark.
        fetch: whether downloads are allowed; False for sources named by a file.
        model: source of the network that the data is for, whose folder has its tokenizer; may be
            empty.
    """

    text: str
    scheme: str
    target: str
    options: Mapping[str, str]
    fetch: bool = True
    model: str = ""

    def with_short_options(self) -> Spec:
        """Return the spec with ``:option=value,option=value`` at the end of the target read.

        A part of the path of an existing file is never taken for options.

        Raises:
            SourceError: options in both forms.
        """
        match = _SHORT.fullmatch(self.target)
        if match is None or "=" not in match[2] or Path(self.target).exists():
            return self
        if self.options:
            raise SourceError(
                f"source {self.text!r} has options after '?' and after ':'. Give all of them after "
                "one of the two."
            )
        pairs = (part.partition("=") for part in match[2].split(","))
        return replace(self, target=match[1], options={name: value for name, _, value in pairs})

    def parsed(self, allowed: Mapping[str, OptionParser]) -> dict[str, Any]:
        """Return the options as typed values.

        Raises:
            SourceError: an unknown option, or a value that cannot be parsed.
        """
        values: dict[str, Any] = {}
        for name, value in self.options.items():
            if name not in allowed:
                valid = (
                    f"Valid options: {', '.join(sorted(allowed))}." if allowed else "None exist."
                )
                raise SourceError(
                    f"source {self.text!r}: unknown option {name!r}. {valid}"
                    + did_you_mean(name, allowed)
                )
            try:
                values[name] = allowed[name](value)
            except ValueError as error:
                raise SourceError(
                    f"source {self.text!r}: option {name!r} must be {error}. "
                    f"Got {shorten(value)} instead."
                ) from None
        return values

    def need_target(self, what: str, example: str) -> str:
        """Return the target; raise an error that shows an example if it is empty."""
        if not self.target:
            raise SourceError(f"source {self.text!r} names no {what}. Write it as {example!r}.")
        return self.target


def parse(source: str) -> Spec:
    """Parse a source; the scheme is empty if none is given."""
    body, _, query = source.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    match = _SCHEME.fullmatch(body)
    if match:
        return Spec(source, match[1], match[2], options)
    return Spec(source, "", body, options)


def is_path(target: str) -> bool:
    """Return whether a target is written as a path; names on a hub are NAME or OWNER/NAME."""
    return _PATH.match(target) is not None or target.count("/") > 1


def as_path(spec: Spec) -> Spec:
    """Write an existing file or folder explicitly as a path (``./name``).

    On another machine, where it does not exist, it is then not mistaken for a name on a hub.
    """
    if not spec.target or is_path(spec.target) or not Path(spec.target).exists():
        return spec
    before, target = f"{spec.scheme}:{spec.target}", f"./{spec.target}"
    text = spec.text.replace(before, f"{spec.scheme}:{target}", 1)
    return replace(spec, text=text, target=target)


def stored_source(source: str) -> str:
    """Return a source as files store it: a folder that could be a name on a hub becomes a path."""
    spec = parse(source)
    return as_path(spec).text if spec.scheme in HUBS else source


def resolve(source: str, kind: str, known: Registry[Any]) -> Spec:
    """Look up the scheme of ``source`` in ``known``; a bare name may itself be a scheme.

    Raises:
        SourceError: unknown scheme; the message lists the schemes and the nearest ones.
    """
    spec = parse(source)
    if spec.scheme in known:
        return spec
    if not spec.scheme and spec.target in known:
        return Spec(spec.text, spec.target, "", spec.options)
    if spec.scheme and _CALLABLE.fullmatch(f"{spec.scheme}:{spec.target}"):
        return Spec(spec.text, "module", f"{spec.scheme}:{spec.target}", spec.options)
    name = spec.scheme or spec.target
    listing = ", ".join(sorted(name for name in known if name != "module"))
    folder = ", or the folder of a Hugging Face model" if kind == "model" else ""
    raise SourceError(
        f"unknown {kind} source {source!r}. Known schemes: {listing}; or 'module:callable' "
        f"for your own code{folder}." + (module_of_file(spec.target) or did_you_mean(name, known))
    )


def module_of_file(source: str) -> str:
    """Return ``" ... Did you mean 'net:build'?"`` for ``net.py:build``, else an empty string."""
    match = re.fullmatch(r"(?:\./)?([\w/\\]+)\.py:([A-Za-z_][\w.]*)", source)
    if match is None:
        return ""
    module = ".".join(re.split(r"[/\\]+", match[1].strip("/\\")))
    return f" Name the module without '.py'. Did you mean '{module}:{match[2]}'?"


def optional_import(package: str, extra: str, purpose: str) -> ModuleType:
    """Import a package that is an optional dependency.

    Raises:
        MissingExtraError: not installed; names the extra that installs it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != package.split(".", maxsplit=1)[0]:
            raise
        raise MissingExtraError(package.split(".", maxsplit=1)[0], extra, purpose) from error


def text(value: str) -> str:
    """Parse a non-empty string."""
    if not value:
        raise ValueError("a non-empty string")
    return value


def whole(value: str) -> int:
    """Parse an integer >= 1."""
    if not value.isdecimal() or int(value) < 1:
        raise ValueError("an integer >= 1")
    return int(value)


def natural(value: str) -> int:
    """Parse an integer >= 0."""
    if not value.isdecimal():
        raise ValueError("an integer >= 0")
    return int(value)


def fraction(value: str) -> float:
    """Parse a number strictly between 0 and 1."""
    (number,) = _floats(value, "a number between 0 and 1", 1)
    if not 0 < number < 1:
        raise ValueError("a number between 0 and 1")
    return number


def numbers(value: str) -> tuple[float, ...]:
    """Parse numbers separated by commas, one per channel."""
    return _floats(value, "numbers separated by commas, one per channel", None)


def switch(value: str) -> bool:
    """Parse a boolean; an option without a value is true."""
    known = {
        "": True,
        "1": True,
        "true": True,
        "yes": True,
        "0": False,
        "false": False,
        "no": False,
    }
    if value.lower() not in known:
        raise ValueError("true or false")
    return known[value.lower()]


def choice(*known: str) -> OptionParser:
    """Return a parser that accepts one of ``known``."""

    def read(value: str) -> str:
        if value not in known:
            raise ValueError("one of " + ", ".join(known))
        return value

    return read


def _floats(value: str, expected: str, count: int | None) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise ValueError(expected) from None
    if not all(math.isfinite(number) for number in values):
        raise ValueError(expected)
    if count is not None and len(values) != count:
        raise ValueError(expected)
    return values
