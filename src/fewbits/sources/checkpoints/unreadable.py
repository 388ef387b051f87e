"""What a file is that is no checkpoint, and how to save again one that holds objects.

A pickle is looked through opcode by opcode; nothing of it is made.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

from ...errors import ConfigError
from ...files.json_values import read_json, read_text

__all__ = ["advice", "foreign", "shard_of"]

_HEAD = 512  # bytes that tell a text from a checkpoint
_PAGES = ("<!doctype", "<html", "<head", "<?xml", "<body")
_MOST_OPCODES = 300_000  # that are looked at: about 10,000 tensors, or half a second
_LEGACY = 4  # pickles before the tensors in files older than the zips: the last has the names
_MAKERS = ("._reconstruct", "._frombuffer")  # the functions of NumPy that make an array


def foreign(path: Path, *, texts: bool = True) -> str:
    """Return what a file is in place of the real one, and the way out; "" for what may be it.

    ``texts``: any text is.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    text = _text_in(head)
    if not head:
        return "is empty. Get it again."
    if text.startswith("version https://git-lfs.github.com/"):
        return (
            "is a pointer of Git LFS, and not the file itself. Fetch that: git lfs pull, or the "
            "download of the site that hosts it."
        )
    if text.lower().startswith(_PAGES):
        return (
            "is a web page (HTML), such as that of an error or a login, and not the file itself. "
            "Download that again, and look at the address."
        )
    shown = " ".join(text.split())[:40]
    told = (
        f"is no checkpoint but a text, which begins with {shown!r}. Get the file itself, or save "
        "it again with torch.save(model.state_dict(), path)."
    )
    return told if text and texts else ""


def _text_in(head: bytes) -> str:
    """Return the text that the first bytes of a file are; "" where they are none."""
    try:
        # the last character may be cut off
        text = head.decode("utf-8", "ignore" if len(head) == _HEAD else "strict").lstrip("\ufeff")
    except UnicodeDecodeError:
        return ""
    plain = all(letter.isprintable() or letter.isspace() for letter in text)
    return text.lstrip() if plain else ""


def shard_of(path: Path) -> str:
    """Return what to do where a checkpoint is one of several shards; "" where it is not known."""
    for index in sorted(path.parent.glob("*.index.json")):
        try:
            data = read_json(read_text(index))
        except (OSError, ConfigError):
            continue
        shards = data.get("weight_map") if isinstance(data, dict) else None
        files = list(shards.values()) if isinstance(shards, dict) else []
        if path.name in files:
            return (
                f"It is one of {len(set(map(str, files)))} shards: name their index, "
                f"{index.name!r}, which lies beside it, or the folder."
            )
    stem, mark, count = path.stem.rpartition("-of-")
    number = stem.rpartition("-")[2]
    if mark and number.isdecimal() and count.isdecimal() and int(count) > 1:
        return (
            f"By its name it is one of {int(count)} shards, and no .index.json of them is beside "
            "it: fetch the whole checkpoint, and name the index."
        )
    return ""


def advice(path: Path, found: str, keys: Sequence[str]) -> tuple[str, str]:
    """Return what an object in a pickle is, and the code that saves the tensors without it.

    Args:
        path: the checkpoint.
        found: the function or class that PyTorch will not call.
        keys: under which a state dict may be, the likeliest first.
    """
    seen = _look_through(path)
    what = found
    if found.startswith("numpy.") and found.endswith((*_MAKERS, ".scalar")):
        what = "numpy.ndarray" if found.endswith(_MAKERS) else "numpy.number"
    key = next((key for key in keys if key in seen.keys), None) if seen.is_dict else None
    part = "x" if key is None else f"x[{key!r}]"
    if not seen.is_dict:
        ways = (
            "torch.save(x.state_dict(), path) where x is a module, or torch.save(x[key], path) "
            "with the key of its state dict where it is a dict"
        )
        return what, ways
    if any(name.startswith("numpy.") and name.endswith(_MAKERS) for name in seen.names):
        each = "v if torch.is_tensor(v) else torch.from_numpy(numpy.asarray(v))"
        part = f"{{k: {each} for k, v in {part}.items()}}"
    elif "collections.defaultdict" in seen.names:
        part = f"dict({part})"
    elif key is None:
        ways = (
            "torch.save(x[key], path) with the key of its state dict; or, where the tensors are "
            "beside the rest, torch.save({k: v for k, v in x.items() if torch.is_tensor(v)}, path)"
        )
        return what, ways
    way = f"torch.save({part}, path)"
    if key is not None and seen.has_modules:
        way += f", or torch.save(x[{key!r}].state_dict(), path) where that is a module"
    return what, way


@dataclass
class _Seen:
    """What a pickle tells without being run.

    Attributes:
        names: functions and classes that it asks for.
        keys: texts of its outermost level.
        has_modules: whether a network is in it.
        is_dict: whether it is known to be a dict of some kind.
    """

    names: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    has_modules: bool = False
    is_dict: bool = False

    def look(self, data: IO[bytes]) -> None:
        """Take note of the opcodes of one pickle."""
        depth, last, first = 0, ("", ""), True
        for opcode, argument, _ in islice(pickletools.genops(data), _MOST_OPCODES):
            name = ""
            if opcode.name == "GLOBAL":
                name = str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                name = ".".join(last)
            elif isinstance(argument, str):
                last = (last[1], argument)
                self.has_modules |= argument == "_parameters"  # an attribute of each
                if depth <= 1:
                    self.keys.add(argument)
            if name:
                self.names.append(name)
            if first and (name or opcode.name in ("EMPTY_DICT", "EMPTY_LIST", "MARK")):
                self.is_dict = opcode.name == "EMPTY_DICT" or name.startswith("collections.")
                first = False
            depth += opcode.name == "MARK"
            depth -= pickletools.markobject in opcode.stack_before


def _look_through(path: Path) -> _Seen:
    seen = _Seen()
    try:
        for data in _pickles(path):
            seen = _Seen()
            seen.look(data)
    except Exception:  # a damaged pickle makes the reader stumble anywhere; then less is known
        return seen
    return seen


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """Yield the pickles of a file, the last of which has the names of the tensors."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(inside) as data:
                yield data
        return
    with path.open("rb") as file:
        for _ in range(_LEGACY):
            yield file
