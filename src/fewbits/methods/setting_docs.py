"""Read the meanings of settings from docstrings, for help pages, tables and the documentation."""

from __future__ import annotations

import inspect
import re
from typing import Any

__all__ = ["setting_docs"]

_SECTION = re.compile(r"^(?:Attributes|Args):\n((?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")
_ALSO = "also "  # starts a text that is added to the meaning given by a base class


def setting_docs(owner: type[Any]) -> dict[str, str]:
    """Return the meaning of each setting of a dataclass, from its docstring and those of its bases.

    A meaning that starts with "also" is added to that of the base class.
    """
    meanings: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        for names, meaning in _entries(base):
            for name in names:
                more = meaning.startswith(_ALSO) and name in meanings
                meanings[name] = f"{meanings[name].rstrip('.')}; {meaning}" if more else meaning
    return meanings


def _entries(owner: type[Any]) -> list[tuple[list[str], str]]:
    section = _SECTION.search(inspect.cleandoc(vars(owner).get("__doc__") or "") + "\n")
    if section is None:
        return []
    return [
        (entry[1].split(", "), _ROLE.sub(_name, " ".join(entry[2].split())))
        for entry in _ENTRY.finditer(section[1])
    ]


def _name(role: re.Match[str]) -> str:
    return f"``{role[2].rpartition('.')[2]}``"
