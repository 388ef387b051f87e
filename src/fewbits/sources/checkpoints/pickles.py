"""Resource checks on a PyTorch pickle before it is loaded.

``torch.load(weights_only=True)`` runs no code, but a few bytes can still make it use unlimited
memory or time: a ``bytearray`` of any size, endless opcodes in a compressed file, and nested tuples
that are hashed once per path through them.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...errors import SourceError

__all__ = ["check_pickles"]

_FREE = 1 << 16  # opcodes allowed besides one per byte of the file; a tensor takes about 30
_HEAVIEST = 100_000  # values in a tuple, with nested tuples expanded
_LEGACY = 5  # pickles in a file of the format before zip
_REFUSED = ("builtins bytearray", "__builtin__ bytearray")
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")


def check_pickles(path: Path) -> None:
    """Check that the pickle in a torch.save file asks for no more than its length justifies.

    Files that contain no such pickle are ignored.

    Raises:
        SourceError: names the file and the problem.

    Cost: about two microseconds per opcode, at most 65,536 opcodes plus one per byte.
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
    except Exception:  # not a pickle, or a broken one: the unpickler reports that
        return


def _walk(file: IO[bytes], allowed: int, pickles: int, path: Path) -> None:
    seen = 0
    for _ in range(pickles):
        machine = _Machine()
        for opcode, argument in _opcodes(file):
            seen += 1
            cause = machine.step(opcode, argument)
            if seen > allowed:
                cause = f"its pickle has more than {allowed:,} opcodes, too many for its length"
            if cause:
                raise SourceError(
                    f"{path}: cannot be loaded safely: {cause}. Save only its tensors: "
                    "torch.save(model.state_dict(), path)."
                )


def _opcodes(file: IO[bytes]) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    for opcode, argument, _ in pickletools.genops(file):
        yield opcode, argument


class _Machine:
    """The stack of an unpickler that tracks only the sizes of values."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}
        self.words = ("", "")

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> str:
        """Process one opcode; return what is wrong with it, or ""."""
        name = opcode.name
        if isinstance(argument, str):
            self.words = (self.words[1], argument)
        called = argument if name == "GLOBAL" else " ".join(self.words)
        if name in ("GLOBAL", "STACK_GLOBAL") and called in _REFUSED:
            return "it creates a bytearray, which can allocate any amount of memory"
        if name in _PUTS or name == "MEMOIZE":
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        else:
            return self._apply(opcode)
        return ""

    def _apply(self, opcode: pickletools.OpcodeInfo) -> str:
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
            return f"a tuple in it expands to more than {_HEAVIEST:,} values"
        return ""
