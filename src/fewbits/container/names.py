"""Front coding of dotted names: a network's blocks repeat, so what is left repeats too."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import CorruptFileError

__all__ = ["MAX_NAME", "pack_names", "unpack_names", "utf8_size"]

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
MAX_NAME = 1024
MAX_NAMES = 1_000_000


def pack_names(names: Iterable[str]) -> list[str]:
    """Return each name as the number of components shared with the last one, and the others."""
    packed: list[str] = []
    before = [""]
    for name in names:
        parts = name.split(".")
        most = min(len(parts) - 1, len(before), len(DIGITS) - 1) if packed else 0
        shared = 0
        while shared < most and parts[shared] == before[shared]:
            shared += 1
        packed.append(DIGITS[shared] + ".".join(parts[shared:]))
        before = parts
    return packed


def unpack_names(packed: object, what: str, max_bytes: int) -> tuple[str, ...]:
    """Return the names of ``packed``; they are unique and take at most ``max_bytes`` in all."""
    if not isinstance(packed, list) or len(packed) > MAX_NAMES:
        raise CorruptFileError(f"the names of {what} must be a list of at most {MAX_NAMES}")
    names: dict[str, None] = {}
    parts: list[str] = []
    total = 0
    for position, text in enumerate(packed):
        shared = DIGITS.find(text[0]) if isinstance(text, str) and text else -1
        if not 0 <= shared <= len(parts):
            raise CorruptFileError(f"name {position} of {what} is malformed: {str(text)[:80]!r}")
        parts = parts[:shared] + text[1:].split(".")
        name = ".".join(parts)
        size = utf8_size(name)
        total += size
        if size > MAX_NAME:
            raise CorruptFileError(f"name {position} of {what} is too long, or not Unicode")
        if total > max_bytes:
            raise CorruptFileError(
                f"the names of {what} are too long: more than {max_bytes} bytes in all. If you "
                "trust the file, raise max_decoded_bytes."
            )
        if name in names:
            raise CorruptFileError(f"the name {name!r} occurs twice in {what}")
        names[name] = None
    return tuple(names)


def utf8_size(name: str) -> int:
    """Return the bytes of ``name``; beyond ``MAX_NAME`` where it holds surrogates."""
    try:
        return len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return MAX_NAME + 1
