"""Where a compression keeps what does not fit in memory, and what it can resume from."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from torch import Tensor

from ...engine.network.sharing import assign
from ...engine.paged.paging import Pager, Scratch, trim_heap
from ...errors import ConfigError, require
from .journal import Journal

__all__ = ["Workspace"]

_HOARD = 1 << 24  # bytes of weights in memory after which freed memory is given back


class _Temporary:
    """A temporary folder that goes with this object, or when the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fewbits-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass
class Workspace:
    """The memory and the folders of one compression.

    Attributes:
        pager: drops the pages of a network that is read from disk; None if it is in memory.
        resume: folder that keeps what is done; None if the compression cannot be resumed.
    """

    pager: Pager | None = None
    resume: Path | None = None
    _temporary: _Temporary | None = field(default=None, repr=False)
    _scratch: Scratch | None = field(default=None, repr=False)
    _written: int = field(default=0, repr=False)

    @classmethod
    def of(cls, pager: Pager | None, resume: str | PathLike[str] | None) -> Workspace:
        """Check arguments, and create a temporary folder if it is needed.

        Raises:
            ConfigError: ``resume`` is not the path of a folder.
        """
        require(resume is None or isinstance(resume, (str, PathLike)), "resume", "a folder", resume)
        folder = None if resume is None else Path(resume)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ConfigError(f"resume must name a folder, but {str(folder)!r} is a file.")
        return cls(pager, folder)

    def begin(self, key: str) -> Journal | None:
        """Return the journal of a run; None if everything stays in memory."""
        if self.resume is not None:
            return Journal(self.resume, key)
        if self.pager is None:
            return None
        self._temporary = _Temporary()
        return Journal(self._temporary.path / "journal", key)

    @property
    def kept(self) -> object:
        """The temporary folder, which is removed when nothing refers to it any longer."""
        return self._temporary

    def place(self, weights: Mapping[str, Tensor]) -> None:
        """Reserve room on disk for the values of these weights, if the network is on disk."""
        if self.pager is None:
            return
        home = self.resume if self._temporary is None else self._temporary.path
        if home is None:
            raise ValueError("begin() comes before place(): it makes the folder")
        self._scratch = Scratch(home, {name: weight.nbytes for name, weight in weights.items()})
        self.pager.add(self._scratch.mapping)

    def set_values(self, name: str, parameter: Tensor, values: Tensor) -> None:
        """Set the values of a weight whose memory is shared with the float network."""
        self._written += parameter.nbytes
        if self._scratch is None:
            assign(parameter, values)
        else:
            parameter.data = self._scratch.put(name, values.to(parameter.dtype))

    def release(self) -> None:
        """Give back the memory of what has been read from disk, and of what was freed."""
        if self.pager is not None:
            self.pager.release()
        elif self._written < _HOARD:
            return
        self._written = 0
        trim_heap()
