"""Settings with their meanings: tables made from dataclasses and their docstrings."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, fields
from typing import Any

import fewbits
from fewbits import METHODS
from fewbits.methods.setting_docs import setting_docs

__all__ = ["settings_page", "settings_table"]

_LITERAL = re.compile(r"``(.+?)``")
_SHARED = {
    "Inputs of layers, without training": fewbits.Activations,
    "Training": fewbits.Training,
}


def settings_page() -> str:
    """One section per registered method: what it needs, and its settings with their meanings."""
    parts = ["# Settings\n\nEvery setting of every method, with its default, from the docstrings."]
    parts.append(
        "In Python they are keyword arguments, on the command line `--set name=value`, in a\n"
        "[recipe](../recipes.md) keys beside `method`. Which method to take:\n"
        "[which method, when](../which_method.md)."
    )
    parts += [_section(name, method) for name, method in METHODS.items()]
    for title, shared in _SHARED.items():
        told = _first_line(shared)
        parts.append(
            f"## {title}\n\n`fewbits.{shared.__name__}`: {told}\n\n{settings_table(shared)}"
        )
    return "\n\n".join(parts) + "\n"


def settings_table(owner: type[Any]) -> str:
    """Return the table of a dataclass's settings.

    Raises:
        ValueError: a setting whose meaning no docstring tells.
    """
    known = {name: _cell(meaning) for name, meaning in setting_docs(owner).items()}
    missing = [entry.name for entry in fields(owner) if not known.get(entry.name)]
    if missing:
        raise ValueError(
            f"no meaning of {', '.join(missing)} in the docstring of {owner.__name__}: "
            "write it under 'Attributes:'."
        )
    rows = [
        f"| `{entry.name}` | {_default(entry)} | {known[entry.name]} |" for entry in fields(owner)
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def _cell(told: str) -> str:
    """Return markdown that a table can hold."""
    return _LITERAL.sub(r"`\1`", told).replace("|", "\\|")


def _default(entry: Field[Any]) -> str:
    if entry.default is not MISSING:
        return f"`{entry.default!r}`".replace("|", "\\|")
    if entry.default_factory is not MISSING:
        return f"`{entry.default_factory()!r}`".replace("|", "\\|")
    return "required"


def _section(name: str, method: Any) -> str:
    return (
        f"## {name}\n\n`fewbits.{method.__name__}`: {method.summary}.\n\n- Paper: {method.paper}\n"
        f"- Needs: {method.capabilities.needs}\n\n{settings_table(method)}"
    )


def _first_line(owner: type[Any]) -> str:
    return _cell(inspect.cleandoc(owner.__doc__ or "").partition("\n")[0])
