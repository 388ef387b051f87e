"""The one verb for every runtime: find the exporter, check what it needs, and let it write."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..coded import FLOAT_DTYPES, RAW_DTYPES, Contents
from ..compression.coded_model import CodedModel
from ..container import read
from ..errors import ConfigError, did_you_mean, require, shorten
from ..files.atomic_write import check_target
from ..files.draft import draft
from .base import EXPORTERS, NEEDS, Checks, Exported, Exporter

__all__ = ["export", "exporter_for", "exporter_name"]

_OTHER_WEIGHTS = (
    *("model-*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*"),
    "fewbits.safetensors",
)
_STRUCTURE = 1 << 16  # bytes of names and nodes, which matter beside small networks only


def export(
    coded: CodedModel | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    to: str | None = None,
    model: nn.Module | None = None,
    inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor] | None = None,
    check: bool = False,
    larger: bool = False,
    **options: Any,
) -> Exported:
    """Write a compressed network for another runtime.

    >>> export("net.fewbits", "net.onnx", model=model, inputs=batch)  # doctest: +SKIP

    Args:
        coded: the compressed network, or its file.
        path: the file to write, or the folder.
        to: name of an exporter in ``EXPORTERS``; None chooses by the suffix of ``path``.
        model: a network of the same architecture, for exporters that need one; it is not changed.
        inputs: of the network, for exporters that trace it: two samples or more. A mapping names
            arguments of its forward pass; its labels are left out.
        check: run the file on ``inputs`` in its runtime, and return how it does (``Checked``).
        larger: write the file even if it is larger than the network's weights in float32.
        options: of the exporter, such as ``processor="vnni"`` of "onnx".

    Raises:
        ConfigError: no such exporter or option, something it needs is missing, ``path`` is a
            device, a FIFO or a socket, or the file would be larger than the weights in float32.
        MissingExtraError: a package that the exporter imports is not installed.
        ModelError: the exporter cannot follow the network, or the runtime cannot run it.
    """
    exporter = exporter_for(exporter_name(path, to), options)
    name, suffix = exporter.name, exporter.suffix
    if suffix:
        check_target(path)
    else:
        _check_folder(Path(path))
    if suffix and Path(path).suffix != suffix:
        raise ConfigError(f"output {os.fspath(path)!r} must end in {suffix}.")
    given = _positional(model, inputs)
    missing = {"model": model is None, "inputs": not given}
    for what in NEEDS[1 : 1 + NEEDS.index(exporter.needs)]:
        if missing[what]:
            raise ConfigError(f"the exporter {name!r} needs {what}=: pass it.")
    runs = exporter.check if isinstance(exporter, Checks) else None
    if check and runs is None:
        raise ConfigError(f"files of the exporter {name!r} cannot be checked: leave out check.")
    file = None if isinstance(coded, CodedModel) else Path(coded)
    contents = coded.contents if isinstance(coded, CodedModel) else read(coded)
    with draft(path) as place:
        told = exporter.export(contents, place, model, given)
        notes = (*told.notes, *_size_notes(told, contents, file, larger=larger))
        found = runs(contents, place, model, given) if check and runs is not None else None
    return replace(told, path=Path(path), notes=notes, check=found)


def _check_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"output {str(path)!r} is a file, and a folder is written. Name another.")
    others = sorted({other.name for rule in _OTHER_WEIGHTS for other in path.glob(rule)})
    if others:
        raise ConfigError(
            f"the folder {str(path)!r} already has other weights ({', '.join(others)}), which "
            "readers may take. Remove them, or name another folder."
        )


def _positional(
    model: nn.Module | None, inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor] | None
) -> tuple[Tensor, ...]:
    """Return the inputs in the order of the network's forward pass."""
    if isinstance(inputs, Mapping):
        if model is None:
            raise ConfigError("inputs by name need model=, whose forward pass has the names.")
        rest = {key: value for key, value in inputs.items() if key != "labels"}
        known = list(inspect.signature(model.forward).parameters)
        order = known[: len(rest)]
        if set(order) != set(rest):
            raise ConfigError(
                f"inputs must be the first arguments of the network ({', '.join(known[:4])}, ...). "
                f"Got {', '.join(map(shorten, rest))} instead."
            )
        inputs = tuple(rest[key] for key in order)
    given = inputs if isinstance(inputs, tuple) else () if inputs is None else (inputs,)
    good = all(isinstance(value, Tensor) for value in given)
    require(good, "inputs", "a tensor or a tuple of tensors", inputs)
    return given


def _size_notes(
    told: Exported, contents: Contents, file: Path | None, *, larger: bool
) -> list[str]:
    """Say how long a file is beside what it came from.

    Raises:
        ConfigError: it is longer than the weights in float32, by more than names and nodes of a
            graph take, and ``larger`` does not allow that.
    """
    floats = sum(
        math.prod(tensor.shape) * (4 if tensor.dtype in FLOAT_DTYPES else RAW_DTYPES[tensor.dtype])
        for tensor in contents.tensors.values()
    )
    if told.bytes > floats + _STRUCTURE and not larger:
        why = "" if told.weights else " No weight is an integer in it."
        raise ConfigError(
            f"the export has {told.bytes:,} bytes, and the network's weights in float32 have "
            f"{floats:,}: nothing was written.{why} Choose another exporter (--to) or method, or "
            "pass larger=True (--larger) to write it anyway."
        )
    notes = []
    if told.bytes > floats:
        notes.append(f"the file is larger than the network's weights in float32: {floats:,} bytes.")
    if file is not None and told.bytes > 2 * file.stat().st_size:
        notes.append(
            f"the file is {told.bytes / file.stat().st_size:.1f} times as large as {file.name}, "
            "whose integers are entropy-coded."
        )
    return notes


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
