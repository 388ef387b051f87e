"""The folder of a run: the latest checkpoint and the best epoch, written atomically.

A checkpoint is a dictionary of tensors and plain values, written by ``torch.save`` and read back
with ``weights_only=True``, so reading it runs no code. It is followed by one line with the SHA-256
of all bytes before, because torch does not verify the checksums of the zip, which do not cover all
of it anyway. ``torch.load`` can read such a file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ...errors import ConfigError, SourceError
from ...files.atomic_write import check_target, clear_stale, replacing
from ...sources.checkpoints.pickles import check_pickles

__all__ = ["SCHEMA", "RunFolder"]

SCHEMA = "fewbits.checkpoint/2"
_SEAL = f"\n{SCHEMA} sha256 ".encode()
_SEAL_LENGTH = len(_SEAL) + 64 + 1  # with the digest in hexadecimal and the end of the line
_OLD_TEMPORARY = ".writing"  # suffix of temporary files of earlier versions
_LATEST = ("key", "best", "reference")


class RunFolder:
    """Checkpoints of one run. Only one process writes; any number may read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def last(self) -> Path:
        """The file of the latest checkpoint."""
        return self.path / "last.pt"

    def epoch_file(self, epoch: int) -> Path:
        """Return the file for the network of one epoch (from 1)."""
        return self.path / f"epoch-{epoch:04d}.pt"

    def prepare(self, resume: bool) -> None:
        """Create the folder, and remove temporary files of a killed run.

        Raises:
            ConfigError: there is no run to resume, or there is one that is not to be resumed.
        """
        if resume and not self.path.is_dir():
            raise ConfigError(
                f"no run to resume in {str(self.path)!r}: there is no such folder. Start a run "
                "first."
            )
        if not resume and self.last.exists():
            raise ConfigError(
                f"folder {str(self.path)!r} already holds a run. Resume it, or name another folder."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        clear_stale(self.path)
        for left in self.path.glob(f"*{_OLD_TEMPORARY}"):
            left.unlink()

    def clear(self) -> None:
        """Remove the checkpoints of the run in the folder.

        Raises:
            ConfigError: one of them is not a regular file; nothing is removed then.
        """
        files = [self.last, *self.path.glob("epoch-*.pt")]
        for file in files if self.path.is_dir() else ():
            check_target(file)
        for file in files:
            file.unlink(missing_ok=True)

    def save(self, state: Mapping[str, Any], keep_epoch: int | None) -> None:
        """Write the latest checkpoint, and remove all epochs except ``keep_epoch``."""
        self.write(self.last, state)
        kept = None if keep_epoch is None else self.epoch_file(keep_epoch)
        for file in self.path.glob("epoch-*.pt"):
            if file != kept and file.is_file():
                file.unlink()

    def load(self, key: str) -> dict[str, Any] | None:
        """Return the latest checkpoint, or None if the run ended before its first one.

        Raises:
            ConfigError: it belongs to a run with other settings, according to ``key``.
            SourceError: it cannot be read; see :meth:`read`.
        """
        if not self.last.exists():
            return None
        state = self.read(self.last)
        missing = [name for name in _LATEST if name not in state]
        if missing:
            raise _unreadable(self.last, f"it has no {missing[0]!r}")
        if state["key"] != key:
            raise ConfigError(
                f"{self.last}: belongs to a run with another network, data, loss or settings. "
                "Resume it with those it was started with, or name another folder."
            )
        return state

    @staticmethod
    def write(path: Path, state: Mapping[str, Any]) -> None:
        """Write a file atomically: a killed process leaves either the old file or the new one.

        Raises:
            OSError: the system cannot write it, for example because the disk is full.
        """
        with replacing(path) as file:
            sealing: Any = _Sealing(file)
            try:
                torch.save(dict(state), sealing)
            except RuntimeError:
                if sealing.failure is not None:  # torch replaces it by an error about positions
                    raise sealing.failure from None
                raise
            file.write(sealing.seal())

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """Read a file written by :meth:`write`, to the CPU.

        Raises:
            SourceError: the file is missing, damaged, or was not written by :meth:`write`.
        """
        if not path.is_file():
            raise _unreadable(path, "there is no such file")
        try:
            with path.open("rb") as file:
                _check_seal(file, path)
                check_pickles(path)
                state = torch.load(file, map_location="cpu", weights_only=True)
        except SourceError:
            raise
        except Exception as error:  # the digest can be forged, and torch may then raise anything
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise _unreadable(path, reason) from error
        if not isinstance(state, dict):
            raise _unreadable(path, "it does not hold the state of a run")
        return state


class _Sealing:
    """A file being written, which computes the digest of all bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes and update the digest."""
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is complete."""

    def seal(self) -> bytes:
        """Return the last line of the file."""
        return _SEAL + self.digest.hexdigest().encode() + b"\n"


def _check_seal(file: BinaryIO, path: Path) -> None:
    """Read the whole file and compare its digest with the one in its last line."""
    length = file.seek(0, os.SEEK_END) - _SEAL_LENGTH
    file.seek(max(0, length))
    seal = file.read(_SEAL_LENGTH)
    if length < 0 or not seal.startswith(_SEAL):
        raise _unreadable(path, "its last line is not a digest")
    digest = hashlib.sha256()
    file.seek(0)
    while length:
        piece = file.read(min(length, 1 << 20))
        if not piece:
            raise _unreadable(path, "it became shorter while it was read")
        digest.update(piece)
        length -= len(piece)
    if seal != _SEAL + digest.hexdigest().encode() + b"\n":
        raise _unreadable(path, "its checksum is wrong")
    file.seek(0)


def _unreadable(path: Path, reason: str) -> SourceError:
    return SourceError(
        f"checkpoint {str(path)!r} cannot be read: {reason}. It is damaged, or no checkpoint of "
        f"this version ({SCHEMA}): train again in another folder."
    )
