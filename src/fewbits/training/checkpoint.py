"""The folder of a run: the latest checkpoint, the best epoch, and nothing half written.

A checkpoint is a dictionary of tensors and plain values, written by ``torch.save`` and read back
with ``weights_only=True``, so that reading one runs no code.
"""

from __future__ import annotations

import os
import pickle
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, SourceError

__all__ = ["SCHEMA", "RunFolder"]

SCHEMA = "fewbits.checkpoint/1"
_TEMPORARY = ".writing"


class RunFolder:
    """Checkpoints of one run. Only one process writes; any number may read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def last(self) -> Path:
        """The file of the latest checkpoint."""
        return self.path / "last.pt"

    def epoch_file(self, epoch: int) -> Path:
        """Return the file that keeps the network of one epoch, counted from 1."""
        return self.path / f"epoch-{epoch:04d}.pt"

    def prepare(self, resume: bool) -> None:
        """Make the folder, and clear away what a killed run was writing.

        Raises:
            ConfigError: it holds a run that is not to be resumed, or none where one is.
        """
        if resume and not self.path.is_dir():
            raise ConfigError(
                f"there is no run to resume in {str(self.path)!r}: no such folder. Start it first."
            )
        if not resume and self.last.exists():
            raise ConfigError(
                f"folder {str(self.path)!r} holds a run. Resume it, or name another folder."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(f"*{_TEMPORARY}"):
            left.unlink()

    def clear(self) -> None:
        """Forget the run that the folder holds."""
        for file in (self.last, *self.path.glob("epoch-*.pt")):
            file.unlink(missing_ok=True)

    def save(self, state: Mapping[str, Any], keep_epoch: int | None) -> None:
        """Write the latest checkpoint; of the kept epochs only ``keep_epoch`` stays."""
        self.write(self.last, {"schema": SCHEMA, **state})
        kept = None if keep_epoch is None else self.epoch_file(keep_epoch)
        for file in self.path.glob("epoch-*.pt"):
            if file != kept:
                file.unlink()

    def load(self, key: str) -> dict[str, Any] | None:
        """Return the latest checkpoint, or None where the run was ended before its first.

        Raises:
            ConfigError: it is of a run with other settings than ``key`` stands for.
            SourceError: it cannot be read.
        """
        if not self.last.exists():
            return None
        state = self.read(self.last)
        if state.get("schema") != SCHEMA:
            raise SourceError(
                f"{self.last}: is no checkpoint of this version ({SCHEMA}). It has schema "
                f"{state.get('schema')!r}; train again in another folder."
            )
        if state["key"] != key:
            raise ConfigError(
                f"{self.last}: is of a run with another network, data, loss or settings. Resume it "
                "with those it was started with, or name another folder."
            )
        return state

    @staticmethod
    def write(path: Path, state: Mapping[str, Any]) -> None:
        """Write a file wholly or not at all: who is killed here leaves the old file or the new."""
        temporary = path.with_name(f"{secrets.token_hex(8)}{_TEMPORARY}")
        try:
            with temporary.open("xb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """Return what :meth:`write` wrote, on the CPU.

        Raises:
            SourceError: the file is missing, damaged, or holds more than plain values.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as e:
            reason = str(e).partition("\n")[0]
            raise SourceError(f"checkpoint {str(path)!r} cannot be read: {reason}") from e
        if not isinstance(state, dict):
            raise SourceError(f"{path}: is no checkpoint of a run.")
        return state
