"""The journal of a compression: every finished weight in a small file, to resume from and to read.

A folder holds ``journal.json``, which says what is compressed and how, and one file in fewbits's
own format for every module (or weight) that is done, numbered in the order in which they were
finished. Each is written atomically, so a process that is killed leaves whole files.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...coded import CodedTensor, Contents, RawTensor
from ...container import encode, inspect, read_tensor
from ...errors import ConfigError, CorruptFileError
from ...files.atomic_write import clear_stale, write
from ...files.json_values import read_json, read_text

__all__ = ["Finished", "Journal"]

_VERSION = 1
_ABOUT = "journal.json"
_DIGITS = 6  # of the number in a file's name; others are not of the journal


@dataclass(frozen=True)
class Finished:
    """A part of the network that is done.

    Attributes:
        part: what it is: "module NAME", or "weight NAME" for weights that need no inputs.
        weights: names of its quantized weights.
        changed: names of other tensors that changed with it, such as corrected biases.
        info: measurements of the method, by weight.
        notes: notes for the user, by weight.
        unpaired: weights whose rows of the two networks could not be paired.
        changes: what happened to those of ``changed``.
    """

    part: str
    weights: tuple[str, ...]
    changed: tuple[str, ...] = ()
    info: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    unpaired: tuple[str, ...] = ()
    changes: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; numbers that are not finite become strings."""
        info = {
            name: {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
            for name, values in self.info.items()
        }
        return {
            "part": self.part,
            "weights": list(self.weights),
            "changed": list(self.changed),
            "info": info,
            "notes": dict(self.notes),
            "unpaired": list(self.unpaired),
            "changes": dict(self.changes),
        }

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Finished:
        """Return what :meth:`to_dict` gave."""
        info = {n: {k: float(v) for k, v in part.items()} for n, part in values["info"].items()}
        return cls(
            values["part"],
            tuple(values["weights"]),
            tuple(values["changed"]),
            info,
            dict(values["notes"]),
            tuple(values["unpaired"]),
            dict(values.get("changes", {})),  # which older versions did not write
        )


class Journal:
    """A folder of finished parts.

    Args:
        folder: created if it does not exist.
        key: fingerprint of the network, the recipe and the calibration data.

    Attributes:
        finished: the finished parts, in the order in which they were finished.

    Raises:
        ConfigError: the folder belongs to another compression, or is damaged.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._places: dict[str, Path] = {}
        self.finished: list[Finished] = []
        folder.mkdir(parents=True, exist_ok=True)
        clear_stale(folder)
        about = folder / _ABOUT
        if about.exists():
            self._check(about, key)
            for path in sorted(folder.glob(f"{'[0-9]' * _DIGITS}.fewbits")):
                self._add(path)
        elif any(folder.iterdir()):
            raise ConfigError(
                f"the folder {str(folder)!r} has other files and is not one to resume from. Name "
                "a new or empty folder."
            )
        else:
            write(json.dumps({"version": _VERSION, "key": key}).encode(), about)

    @property
    def _next(self) -> str:
        return f"{len(self.finished):0{_DIGITS}d}.fewbits"

    def write(
        self,
        part: Finished,
        weights: Mapping[str, CodedTensor],
        changed: Mapping[str, RawTensor],
    ) -> None:
        """Store a part that is done; after this call it survives the process."""
        contents = Contents({**weights, **changed}, metadata=part.to_dict())
        path = self._folder / self._next
        write(encode(contents, "fast", threads=1), path)
        self.finished.append(part)
        self._places |= dict.fromkeys((*weights, *changed), path)

    def read(self, name: str) -> CodedTensor:
        """Return a tensor of a finished part, as last written.

        Raises:
            ConfigError: its file is damaged, or was removed.
        """
        path = self._places[name]
        try:
            return read_tensor(path, name, max_decoded_bytes=sys.maxsize)  # it was written here
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path} was removed, but the compressed network still reads it. Keep the folder "
                "until the network is saved; compress again now."
            ) from error
        except CorruptFileError as error:
            raise _damaged(path, error) from error

    def _check(self, about: Path, key: str) -> None:
        try:
            known = read_json(read_text(about))
        except ConfigError as error:
            raise ConfigError(f"{about}: {error} Remove the folder to start again.") from None
        if not isinstance(known, dict) or known.get("version") != _VERSION:
            raise ConfigError(
                f"{about} is not of this version of fewbits. Remove the folder to start again."
            )
        if known.get("key") != key:
            raise ConfigError(
                f"the folder {str(self._folder)!r} belongs to the compression of another network, "
                "or with another recipe, seed or calibration data. Name another folder, or remove "
                "this one to start again."
            )

    def _add(self, path: Path) -> None:
        if path.name != self._next:
            raise ConfigError(
                f"the folder {str(self._folder)!r} has {path.name!r}, but not {self._next!r}, "
                "which comes before it. Remove it and all files with a higher number, then resume."
            )
        try:
            about = inspect(path)
            part = Finished.of_dict(about.metadata)
        except (CorruptFileError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, error) from error
        self.finished.append(part)
        self._places |= dict.fromkeys((*part.weights, *part.changed), path)


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} is damaged: {str(error).rstrip('.')}. Remove it and all files with a higher "
        "number, then resume."
    )
