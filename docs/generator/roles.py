"""Sphinx roles in docstrings, as links of the site: an extension of griffe, which reads them."""

from __future__ import annotations

import re
from typing import Any

import griffe

import fewbits

__all__ = ["Roles", "as_markdown", "one_name_each"]

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")

_SHARED = re.compile(r"^( {4})(\w+(?:, \w+)+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


def as_markdown(text: str) -> str:
    """Turn :class:`~fewbits.GPFQ` and its kin into markdown; public names become links."""

    def plain(found: re.Match[str]) -> str:
        last = found[2].rpartition(".")[2]
        if last in fewbits.__all__:
            return f"[`{last}`][fewbits.{last}]"
        return f"`{last if found[1] else found[2]}`"

    return _ROLE.sub(plain, text)


def one_name_each(text: str) -> str:
    """Give each of "bits, levels: what they mean" an entry of its own."""

    def apart(found: re.Match[str]) -> str:
        return "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))

    return _SHARED.sub(apart, text)


class Roles(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = one_name_each(as_markdown(obj.docstring.value))
