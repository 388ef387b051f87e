"""A package as pip leaves it: its files in a folder, and metadata that declares entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fewbits.registry import Registry

__all__ = ["install", "installed_in"]


def install(
    folder: Path,
    name: str,
    files: Mapping[str, str],
    points: Mapping[str, Mapping[str, str]],
) -> None:
    """Write a package into ``folder``, which is to be on the path.

    ``points``: group to name to value, as in ``[project.entry-points]`` of a pyproject.toml.
    """
    for path, text in files.items():
        (folder / path).write_text(text, encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    lines = []
    for group, entries in points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


@contextmanager
def installed_in(folder: Path, *registries: Registry[Any]) -> Iterator[None]:
    """Have these registries look for packages anew, in ``folder`` too; then as it was before."""
    modules = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for registry in registries:
            patch.setattr(registry, "_declared", None)
            for name in ("_entries", "_loaded", "_broken", "_warned"):
                patch.setattr(registry, name, getattr(registry, name).copy())
        try:
            yield
        finally:
            for path in folder.glob("*.py"):
                if path.stem not in modules:
                    sys.modules.pop(path.stem, None)
