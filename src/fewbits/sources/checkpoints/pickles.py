"""What a pickle of PyTorch would make, looked at before it is made.

``torch.load(weights_only=True)`` runs no code, but a few bytes can still ask it for memory or time
without end: a ``bytearray`` of any size, opcodes that unpack from nothing, and tuples of tuples
that are hashed once for every way through them.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...errors import SourceError

__all__ = ["check_pickles"]

_FREE = 1 << 16  # opcodes, beside one for each byte of the file: a tensor takes about 30 of them
_HEAVIEST = 100_000  # values that a tuple stands for, tuples inside it written out
_LEGACY = 5  # pickles of a file older than the zips
_REFUSED = ("builtins bytearray", "__builtin__ bytearray")
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")


def check_pickles(path: Path) -> None:
    """Refuse a file of torch.save whose pickle asks for more than its length explains.

    Files that are no such pickles are left to their own reader.

    Raises:
        SourceError: names the file, and what it asks for.

    Cost: about two microseconds for each opcode, at most 65,536 and one for each byte.
    """
    allowed = _FREE + path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if entry.filename.rpartition("/")[2] == "data.pkl":
                        with archive.open(entry) as file:
                            _walk(file, allowed, 1, path)
            return
        with path.open("rb") as file:
            _walk(file, allowed, _LEGACY, path)
    except SourceError:
        raise
    except Exception:  # no pickle, or a broken one: the unpickler says so
        return


def _walk(file: IO[bytes], allowed: int, pickles: int, path: Path) -> None:
    seen = 0
    for _ in range(pickles):
        machine = _Machine()
        for opcode, argument in _opcodes(file):
            seen += 1
            cause = machine.step(opcode, argument)
            if seen > allowed:
                cause = f"its pickle has more than {allowed:,} opcodes, one for each byte and more"
            if cause:
                raise SourceError(
                    f"{path}: is no checkpoint that can be read safely: {cause}. Save its tensors "
                    "alone: torch.save(model.state_dict(), path)."
                )


def _opcodes(file: IO[bytes]) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    for opcode, argument, _ in pickletools.genops(file):
        yield opcode, argument


class _Machine:
    """The stack of an unpickler, of which only sizes are known."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}
        self.words = ("", "")

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> str:
        """Take one opcode; return what is wrong with it, or ""."""
        name = opcode.name
        if isinstance(argument, str):
            self.words = (self.words[1], argument)
        made = argument if name == "GLOBAL" else " ".join(self.words)
        if name in ("GLOBAL", "STACK_GLOBAL") and made in _REFUSED:
            return "it makes a bytearray, which takes any number of bytes"
        if name in _PUTS or name == "MEMOIZE":
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        else:
            return self._taken(opcode)
        return ""

    def _taken(self, opcode: pickletools.OpcodeInfo) -> str:
        before = opcode.stack_before
        count = len(before)
        inside: list[int] = []
        if pickletools.markobject in before:
            start = self.marks.pop()
            inside = self.stack[start:]
            del self.stack[start:]
            count = before.index(pickletools.markobject)
        if count:
            inside = self.stack[-count:] + inside
            del self.stack[-count:]
        weight = 1 + sum(inside) if "TUPLE" in opcode.name else 1
        self.stack += [weight] * len(opcode.stack_after)
        if weight > _HEAVIEST:
            return f"a tuple in it stands for more than {_HEAVIEST:,} values"
        return ""
