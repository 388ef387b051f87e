"""The API reference: every public name of the package, by theme, for mkdocstrings to fill in."""

from __future__ import annotations

import inspect
from typing import Any

import fewbits
from fewbits import METHODS, FewbitsError

__all__ = ["api"]

_THEMES = {
    "Functions": "What is called: compress, train, load, look inside, measure.",
    "Methods without training": "Settings of the methods that need calibration data or nothing.",
    "Methods that train": "Settings of the methods that work in a training loop.",
    "Recipes and settings": "What a compression is told.",
    "Results": "What a compression gives back, and what a file tells.",
    "Errors": "Every error of the package is a `fewbits.FewbitsError`.",
    "Registries": "Names to classes; the command line and recipes look methods up here.",
}
_TOLD = {"Activations", "Ramp", "Recipe", "Rule", "Training"}


def api() -> str:
    """Return the page: one section per theme, one entry per name of ``fewbits.__all__``."""
    found: dict[str, list[str]] = {theme: [] for theme in _THEMES}
    for name in fewbits.__all__:
        found[_theme(name, getattr(fewbits, name))].append(name)
    parts = ["# API reference\n"]
    for theme, names in found.items():
        if names:
            parts.append(f"## {theme}\n\n{_THEMES[theme]}\n")
            parts += [_entry(theme, name) for name in names]
    return "\n".join(parts)


def _theme(name: str, value: Any) -> str:
    if not inspect.isclass(value):
        return "Functions" if callable(value) else "Registries"
    if issubclass(value, FewbitsError):
        return "Errors"
    if any(value is method for _, method in METHODS.items()):
        return "Methods that train" if value.capabilities.trains else "Methods without training"
    return "Recipes and settings" if name in _TOLD else "Results"


def _entry(theme: str, name: str) -> str:
    if theme != "Registries":
        return f"::: fewbits.{name}\n"
    names = ", ".join(f"`{entry}`" for entry in getattr(fewbits, name))
    return f"### fewbits.{name} {{#fewbits.{name}}}\n\nHolds {names}.\n"
