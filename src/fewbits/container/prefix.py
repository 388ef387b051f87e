"""The first 32 bytes: whose file this is, which version, how long, and whether it is whole."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ..errors import CorruptFileError
from .dictionary import DICTIONARY

__all__ = [
    "MAGIC",
    "MAX_HEADER",
    "PREFIX",
    "VERSION",
    "Prefix",
    "header_end",
    "join_prefix",
    "split_prefix",
]

MAGIC = b"\x89FWB\r\n\x1a\n"
VERSION = (1, 4)  # the newest; a file names the oldest that has all it uses
PREFIX = 32
MAX_HEADER = 1 << 26
FIELDS = struct.Struct("<8sHHIIQ")

# What the magic becomes on a way that is not clean, or what people confuse with a file of ours.
CONFUSIONS = (
    (b"\x89FWB\n", "its line ends were changed: copy it again in binary mode"),
    (b"\x89FWB\r\r\n", "its line ends were changed: copy it again in binary mode"),
    (b"\x89FWB", "it was changed on its way: copy it again in binary mode"),
    (b"\xc2\x89FWB", "it was re-encoded as text: copy it again in binary mode"),
    (b"\xef\xbf\xbdFWB", "it was re-encoded as text: copy it again in binary mode"),
    (b"\tFWB", "its eighth bits were cut off: copy it again in binary mode"),
    (b"PK\x03\x04", "it is a zip archive, perhaps a checkpoint of torch.save: compress it first"),
    (b"\x80\x02", "it is a pickle, perhaps an old checkpoint of torch.save: compress it first"),
    (b"version https://git-lfs", "it is a Git LFS pointer: run `git lfs pull`"),
    (b"<!DOCTYPE", "it is a web page, such as that of an error or a login: download it again"),
    (b"<!doctype", "it is a web page, such as that of an error or a login: download it again"),
    (b"<html", "it is a web page, such as that of an error or a login: download it again"),
)


@dataclass(frozen=True)
class Prefix:
    """What the prefix says, and the header's JSON that it vouches for."""

    version: tuple[int, int]
    header: bytes
    payload_start: int


def join_prefix(header: bytes, payload_length: int, minor: int = 0) -> bytes:
    """Return prefix and deflated header of a file whose streams take ``payload_length`` bytes.

    ``minor``: the oldest minor version that has every codec of the file.
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    stored = deflate.compress(header) + deflate.flush()
    total = PREFIX + len(stored) + payload_length
    fields = FIELDS.pack(MAGIC, VERSION[0], minor, len(stored), len(header), total)
    return fields + struct.pack("<I", zlib.crc32(stored, zlib.crc32(fields))) + stored


def header_end(head: bytes) -> int:
    """Return where the prefix ``head`` says that the header ends; nothing is checked."""
    return PREFIX + int(FIELDS.unpack_from(head)[3]) if len(head) >= PREFIX else len(head)


def split_prefix(data: bytes, max_decoded_bytes: int, size: int | None = None) -> Prefix:
    """Return the checked prefix and header of a file; nothing of it is trusted.

    ``data``: the file, or its first bytes up to the header's end where ``size`` is its length.
    """
    size = len(data) if size is None else size
    if not data.startswith(MAGIC):
        raise CorruptFileError(f"this is not a fewbits file: {_diagnose(data)}")
    if len(data) < PREFIX:
        raise CorruptFileError(f"the file ends inside its prefix: {len(data)} of {PREFIX} bytes")
    _, major, minor, stored, raw, total = FIELDS.unpack_from(data)
    if major != VERSION[0]:
        raise CorruptFileError(
            f"the file has format version {major}.{minor}; this version of fewbits reads "
            f"{VERSION[0]}.x. Install the fewbits that wrote it, or a newer one."
        )
    if total != size:
        what = "truncated" if total > size else "followed by other bytes, or damaged"
        raise CorruptFileError(
            f"the file is {what}: its prefix says {total} bytes, there are {size}. Fetch it again."
        )
    if raw > MAX_HEADER or raw * 32 > max_decoded_bytes or stored > size - PREFIX:
        raise CorruptFileError(
            f"the header's lengths ({stored} stored, {raw} inflated) are beyond the file "
            f"or the limit of {max_decoded_bytes} decoded bytes"
        )
    body = data[PREFIX : PREFIX + stored]
    if zlib.crc32(body, zlib.crc32(data[: FIELDS.size])) != int.from_bytes(data[28:32], "little"):
        raise CorruptFileError(
            f"the header (bytes 0 to {PREFIX + stored}) fails its checksum. Fetch the file again."
        )
    return Prefix((major, minor), _inflate(body, raw), PREFIX + stored)


def _inflate(stored: bytes, length: int) -> bytes:
    inflate = zlib.decompressobj(-15, DICTIONARY)
    try:
        header = inflate.decompress(stored, length + 1)
    except zlib.error as error:
        raise CorruptFileError(f"the header (byte {PREFIX}) does not inflate: {error}") from error
    if len(header) != length or not inflate.eof or inflate.unused_data:
        raise CorruptFileError(f"the header (byte {PREFIX}) does not inflate to {length} bytes")
    return header


def _diagnose(data: bytes) -> str:
    if not data:
        return "it is empty"
    for start, reason in CONFUSIONS:
        if data.startswith(start):
            return reason
    if data[8:10] in (b'{"', b"{ "):
        return "it looks like a safetensors file: compress it first"
    return f"it starts with {data[:8]!r} instead of {MAGIC!r}"
