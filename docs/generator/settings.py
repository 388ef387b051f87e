"""Settings with their meanings: tables made from dataclasses and their docstrings."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, fields
from typing import Any

import fewbits
from fewbits import METHODS, TRAINED

__all__ = ["meanings", "settings_page", "settings_table"]

_SECTION = re.compile(r"^(?:Attributes|Args):\n((?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")
_ELSEWHERE = re.compile(r"^[Aa]s (?:in|for|of) :class:`~?[\w.]*?(\w+)`(.*)$")
_LITERAL = re.compile(r"``(.+?)``")
_SHARED = {
    "Inputs of layers, without training": fewbits.Activations,
    "Training": fewbits.Training,
}
_NEEDS = {
    "nothing": "nothing",
    "inputs": "calibration data, seen through the quantized network",
    "both": "calibration data, seen through the float and the quantized network",
}


def settings_page() -> str:
    """One section per registered method: what it needs, and its settings with their meanings."""
    parts = ["# Settings\n\nEvery setting of every method, with its default, from the docstrings."]
    parts.append(
        "In Python they are keyword arguments, on the command line `--set name=value`, in a\n"
        "[recipe](../recipes.md) keys beside `method`. Which method to take:\n"
        "[which method, when](../which_method.md)."
    )
    for name, method in METHODS.items():
        parts.append(_section(name, method, _NEEDS[method.needs]))
    for name, trained in TRAINED.items():
        parts.append(_section(name, trained, "training data, and training by `fewbits.prepare`"))
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
    known = meanings(owner)
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


def meanings(owner: type[Any]) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each setting."""
    found: dict[str, str] = {}
    for base in owner.__mro__:
        for names, told in _entries(base):
            for name in names:
                found.setdefault(name, _resolved(name, told))
    return found


def _entries(owner: type[Any]) -> list[tuple[list[str], str]]:
    section = _SECTION.search(inspect.cleandoc(owner.__doc__ or "") + "\n")
    if section is None:
        return []
    return [
        (found[1].split(", "), " ".join(found[2].split())) for found in _ENTRY.finditer(section[1])
    ]


def _resolved(name: str, told: str) -> str:
    """Follow "as in :class:`Other`" to what that class says of the setting."""
    reference = _ELSEWHERE.match(told)
    if reference is None:
        return _cell(told)
    other = next((m for _, m in [*METHODS.items(), *TRAINED.items()] if m.__name__ == reference[1]))
    meaning, rest = meanings(other).get(name, ""), _cell(reference[2].strip(" ,.;"))
    concerned = all(quoted in meaning for quoted in re.findall(r'"\w+"', rest))
    return f"{meaning} (as in `{other.__name__}`, {rest})" if rest and concerned else meaning


def _cell(told: str) -> str:
    """Return markdown that a table can hold."""
    plain = _ROLE.sub(lambda role: f"`{role[2].rpartition('.')[2]}`", told)
    return _LITERAL.sub(r"`\1`", plain).replace("|", "\\|")


def _default(entry: Field[Any]) -> str:
    if entry.default is not MISSING:
        return f"`{entry.default!r}`".replace("|", "\\|")
    if entry.default_factory is not MISSING:
        return f"`{entry.default_factory()!r}`".replace("|", "\\|")
    return "required"


def _section(name: str, method: Any, needs: str) -> str:
    return (
        f"## {name}\n\n`fewbits.{method.__name__}`: {method.summary}.\n\n- Paper: {method.paper}\n"
        f"- Needs: {needs}\n\n{settings_table(method)}"
    )


def _first_line(owner: type[Any]) -> str:
    return _cell(inspect.cleandoc(owner.__doc__ or "").partition("\n")[0])
