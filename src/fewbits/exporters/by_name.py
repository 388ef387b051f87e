"""The one verb for every runtime: find the exporter, check what it needs, and let it write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..compression.coded_model import CodedModel
from ..container import read
from ..errors import ConfigError, did_you_mean, require, shorten
from ..files.atomic_write import check_target
from .base import EXPORTERS, NEEDS, Exported, Exporter

__all__ = ["export", "exporter_for", "exporter_name"]


def export(
    coded: CodedModel | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    to: str | None = None,
    model: nn.Module | None = None,
    inputs: Tensor | tuple[Tensor, ...] | None = None,
    **options: Any,
) -> Exported:
    """Write a compressed network for another runtime.

    >>> export("net.fewbits", "net.onnx", model=model, inputs=batch)  # doctest: +SKIP

    Args:
        coded: the compressed network, or its file.
        path: the file to write.
        to: name of an exporter in ``EXPORTERS``; None chooses by the suffix of ``path``.
        model: a network of the same architecture, for exporters that need one; it is not changed.
        inputs: of the network, for exporters that trace it: two samples or more.
        options: of the exporter, such as ``processor="vnni"`` of "onnx".

    Raises:
        ConfigError: no such exporter or option, something it needs is missing, or ``path`` is a
            device, a FIFO or a socket.
        MissingExtraError: a package that the exporter imports is not installed.
        ModelError: the exporter cannot follow the network.
    """
    check_target(path)
    exporter = exporter_for(exporter_name(path, to), options)
    name, suffix = exporter.name, exporter.suffix
    if suffix and Path(path).suffix != suffix:
        raise ConfigError(f"output {os.fspath(path)!r} must end in {suffix}.")
    given = inputs if isinstance(inputs, tuple) else () if inputs is None else (inputs,)
    good = all(isinstance(value, Tensor) for value in given)
    require(good, "inputs", "a tensor or a tuple of tensors", inputs)
    missing = {"model": model is None, "inputs": not given}
    for what in NEEDS[1 : 1 + NEEDS.index(exporter.needs)]:
        if missing[what]:
            raise ConfigError(f"the exporter {name!r} needs {what}=: pass it.")
    contents = coded.contents if isinstance(coded, CodedModel) else read(coded)
    return exporter.export(contents, Path(path), model, given)


def exporter_name(path: str | os.PathLike[str], to: str | None = None) -> str:
    """Return ``to``, or the name of the exporter whose files end as ``path`` does.

    Of several, it is the one with the name of the suffix.

    Raises:
        ConfigError: none, or several.
    """
    if to is not None:
        if to not in EXPORTERS:
            raise EXPORTERS.unknown(to)
        return to
    found = _of_suffix(Path(path).suffix)
    if len(found) == 1:
        return found[0]
    where = f"output {os.fspath(path)!r}"
    if found:
        raise ConfigError(f"{where}: say which exporter writes it: {', '.join(found)}.")
    suffixes = dict.fromkeys(kind.suffix for kind in EXPORTERS.values() if kind.suffix)
    known = ", ".join(f"{suffix} ({', '.join(_of_suffix(suffix))})" for suffix in suffixes)
    raise ConfigError(f"{where} must end in {known}, or the exporter must be named.")


def _of_suffix(suffix: str) -> list[str]:
    """Return the exporters that a suffix stands for: the one of its name, or all that write it."""
    found = [name for name, kind in EXPORTERS.items() if kind.suffix == suffix != ""]
    return [name for name in found if f".{name}" == suffix] or found


def exporter_for(name: str, options: Mapping[str, Any]) -> Exporter:
    """Build the exporter ``name`` with ``options``.

    Raises:
        ConfigError: it has no such option, or a value is out of range.
    """
    kind = EXPORTERS[name]
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    for key in options:
        if key not in known:
            raise ConfigError(
                f"the exporter {name!r} has no option {shorten(key)}. "
                f"It has: {', '.join(known) or 'none'}." + did_you_mean(str(key), known)
            )
    return kind(**options)
