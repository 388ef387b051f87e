"""Explain files that are not checkpoints, and how to save again those that contain objects.

Pickles are scanned opcode by opcode; nothing in them is constructed.
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

__all__ = ["describe_other_file", "how_to_resave", "shard_hint"]

_HEAD = 512  # bytes examined to tell text from a checkpoint
_PAGES = ("<!doctype", "<html", "<head", "<?xml", "<body")
_MOST_OPCODES = 300_000  # scanned at most: about 10,000 tensors, or half a second
_LEGACY = 4  # pickles before the tensors in the format before zip; the last has the names
_MAKERS = ("._reconstruct", "._frombuffer")  # NumPy functions that construct arrays


def describe_other_file(path: Path, *, texts: bool = True) -> str:
    """Return what a file is instead of a checkpoint and what to do; "" if it may be a checkpoint.

    ``texts``: whether any text file counts as something else.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    text = _text_in(head)
    if not head:
        return "is empty. Download or copy it again."
    if text.startswith("version https://git-lfs.github.com/"):
        return (
            "is a Git LFS pointer, not the file itself. Fetch the file with git lfs pull, or "
            "download it from the site that hosts it."
        )
    if text.lower().startswith(_PAGES):
        return (
            "is a web page (HTML), such as an error or login page, not the file itself. Check the "
            "address and download the file again."
        )
    shown = " ".join(text.split())[:40]
    message = (
        f"is not a checkpoint but a text file that begins with {shown!r}. Get the actual file, or "
        "save it again with torch.save(model.state_dict(), path)."
    )
    return message if text and texts else ""


def _text_in(head: bytes) -> str:
    """Decode the first bytes of a file as text; "" if they are not text."""
    try:
        # The last character may be truncated.
        text = head.decode("utf-8", "ignore" if len(head) == _HEAD else "strict").lstrip("\ufeff")
    except UnicodeDecodeError:
        return ""
    plain = all(letter.isprintable() or letter.isspace() for letter in text)
    return text.lstrip() if plain else ""


def shard_hint(path: Path) -> str:
    """Return what to do if a checkpoint is one of several shards; "" if it is not known to be."""
    for index in sorted(path.parent.glob("*.index.json")):
        try:
            data = read_json(read_text(index))
        except (OSError, ConfigError):
            continue
        shards = data.get("weight_map") if isinstance(data, dict) else None
        files = list(shards.values()) if isinstance(shards, dict) else []
        if path.name in files:
            return (
                f"It is one of {len(set(map(str, files)))} shards: name their index "
                f"{index.name!r}, or its folder, instead."
            )
    stem, mark, count = path.stem.rpartition("-of-")
    number = stem.rpartition("-")[2]
    if mark and number.isdecimal() and count.isdecimal() and int(count) > 1:
        return (
            f"Judging by its name it is one of {int(count)} shards, but there is no .index.json "
            "next to it: download the whole checkpoint, and name the index."
        )
    return ""


def how_to_resave(path: Path, refused: str, keys: Sequence[str]) -> tuple[str, str]:
    """Return the type of an object in a pickle, and code that saves the tensors without it.

    Args:
        path: the checkpoint.
        refused: the function or class that PyTorch refuses to call.
        keys: keys under which a state dict may be, most likely first.
    """
    seen = _scan(path)
    what = refused
    if refused.startswith("numpy.") and refused.endswith((*_MAKERS, ".scalar")):
        what = "numpy.ndarray" if refused.endswith(_MAKERS) else "numpy.number"
    key = next((key for key in keys if key in seen.keys), None) if seen.is_dict else None
    part = "x" if key is None else f"x[{key!r}]"
    if not seen.is_dict:
        ways = (
            "torch.save(x.state_dict(), path) if x is a module, or torch.save(x[key], path) with "
            "the key of its state dict if it is a dict"
        )
        return what, ways
    if any(name.startswith("numpy.") and name.endswith(_MAKERS) for name in seen.names):
        each = "v if torch.is_tensor(v) else torch.from_numpy(numpy.asarray(v))"
        part = f"{{k: {each} for k, v in {part}.items()}}"
    elif "collections.defaultdict" in seen.names:
        part = f"dict({part})"
    elif key is None:
        ways = (
            "torch.save(x[key], path) with the key of its state dict; or, if the tensors are mixed "
            "with others, torch.save({k: v for k, v in x.items() if torch.is_tensor(v)}, path)"
        )
        return what, ways
    way = f"torch.save({part}, path)"
    if key is not None and seen.has_modules:
        way += f", or torch.save(x[{key!r}].state_dict(), path) if that is a module"
    return what, way


@dataclass
class _PickleSummary:
    """Facts about a pickle found by scanning it, without running it.

    Attributes:
        names: functions and classes that it refers to.
        keys: strings at its outermost level.
        has_modules: whether it contains a network.
        is_dict: whether it is known to be some kind of dict.
    """

    names: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    has_modules: bool = False
    is_dict: bool = False

    def scan(self, data: IO[bytes]) -> None:
        """Record the opcodes of one pickle."""
        depth, last, first = 0, ("", ""), True
        for opcode, argument, _ in islice(pickletools.genops(data), _MOST_OPCODES):
            name = ""
            if opcode.name == "GLOBAL":
                name = str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                name = ".".join(last)
            elif isinstance(argument, str):
                last = (last[1], argument)
                self.has_modules |= argument == "_parameters"  # an attribute of every module
                if depth <= 1:
                    self.keys.add(argument)
            if name:
                self.names.append(name)
            if first and (name or opcode.name in ("EMPTY_DICT", "EMPTY_LIST", "MARK")):
                self.is_dict = opcode.name == "EMPTY_DICT" or name.startswith("collections.")
                first = False
            depth += opcode.name == "MARK"
            depth -= pickletools.markobject in opcode.stack_before


def _scan(path: Path) -> _PickleSummary:
    seen = _PickleSummary()
    try:
        for data in _pickles(path):
            seen = _PickleSummary()
            seen.scan(data)
    except Exception:  # pickletools raises anything on a damaged pickle; use what is known so far
        return seen
    return seen


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """Yield the pickles of a file; the last one has the names of the tensors."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(inside) as data:
                yield data
        return
    with path.open("rb") as file:
        for _ in range(_LEGACY):
            yield file
