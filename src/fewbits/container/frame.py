"""The frame of a file: prefix, deflated index and footer, and the index's preset dictionary.

The dictionary is part of format 2 (SPEC.md, section 7) and must never change within it. Frequent
text comes last, where back-references to it are shortest.

A whole file may be the only tensor of a .safetensors file (SPEC.md, section 8).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import CorruptFileError

__all__ = [
    "DELTA_MAGIC",
    "DICTIONARY",
    "FOOTER",
    "MAGIC",
    "MAX_HEADER",
    "PREFIX",
    "VERSION",
    "Fetch",
    "Frame",
    "located",
    "pack_index",
    "read_frame",
    "undelta",
    "wrapper",
]


DICTIONARY = "".join(
    (
        '"bfloat16""float16""float64""uint8""int8""bool""int32"{"d":"float16"}',
        '{"s":"bfloat16"},{"s":"float16"}]],"a":{"lm_head.weight":0},"b":[16],',
        '"skipped":{"source":"settings":{"seed":0"recipe":{"finish":[],"prepare":[],',
        '"rules":[{"method":{"method":"pwfn""hemp""lowbit""transform""nearest""gptq""kmeans"',
        '"gpfq","pattern":"*""keep""bits":4,"bits":2,"target_bytes":"version":"fewbits",',
        '"0embed_tokens.weight","0model.layers.0.self_attn.q_proj.weight","3k_proj.weight",',
        '"3v_proj.weight","3o_proj.weight","2mlp.gate_proj.weight","3up_proj.weight",',
        '"3down_proj.weight","2input_layernorm.weight","2post_attention_layernorm.weight",',
        '"0transformer.h.0.attn.c_attn.weight","1encoder.layer.0.attention.self.query.weight",',
        '"4key.weight","4value.weight","0features.0.0.weight","0classifier.1.weight","0fc1.weight",',
        '"2linear.weight","1bias","2norm1.weight","2norm2.weight","2norm3.weight","0norm.weight",',
        '"2downsample.0.weight","3shortcut.0.weight","0head.weight","0fc.weight","1bias"],',
        '"c":[0,1,1,1,1,2,2,2,2,2,2,2,2,3,3,3,3,3,3],"g":[8,9,5],"l":[10,100,1000,',
        '"t":[["c",[512,512],{"p":"r"}],["t",[256,256],{"b":["g",[128,128]],"c":["g",[64,64]]}],',
        '["g",[64,64,3,3],{"o":1}],["g",[32,32,3,3],{"p":"r"}],',
        '"m":{"n":["0conv1.weight","0bn1.weight","1bias","1running_mean","1running_var",',
        '"1num_batches_tracked","0layer1.0.conv1.weight","2bn1.weight","3bias",',
        '"3running_mean","3running_var","3num_batches_tracked","2conv2.weight","2bn2.weight",',
        '"3bias","3running_mean","3running_var","3num_batches_tracked","1.conv1.weight",',
        '"t":[["g",[16,3,3,3]],["g",[16,16,3,3]],["r",[32]],["r",[10]],["r",[64]],["r",[128]],',
        '["r",[16]],["r",[16]],["r",[16]],["r",[16]],["r",[],{"d":"int64"}],["g",[16,',
    )
).encode("ascii")


Fetch: TypeAlias = Callable[[int, int], bytes]  # (start, end) -> these bytes of the file

MAGIC = b"\x89FWB\r\n\x1a\n"
DELTA_MAGIC = b"\x89FWD\r\n\x1a\n"  # of a file that holds changes only (SPEC.md, section 9)
VERSION = (2, 1)  # the newest; a file states the lowest minor version that suffices to read it
PREFIX = MAGIC + struct.pack("<H", VERSION[0])
MAX_HEADER = 1 << 26
# Minor version, length of the index as stored and inflated, length of the file.
FIELDS = struct.Struct("<HIIQ")
FOOTER = FIELDS.size + 4

_TENSOR = "fewbits"  # in a .safetensors file
_START = struct.Struct("<Q")  # the length of its header
_WRAPPER = 136  # bytes of that header, padded with spaces
_LONGEST_WRAPPER = 1 << 12  # of one that somebody else wrote

# What a mangled magic looks like, and the starts of files that are often confused with ours.
CONFUSIONS = (
    (DELTA_MAGIC, "it is a delta, the changes since other weights: pass those as base"),
    (b"\x89FWB\n", "its line endings were changed: copy it again in binary mode"),
    (b"\x89FWB\r\r\n", "its line endings were changed: copy it again in binary mode"),
    (b"\x89FWB", "it was changed in transit: copy it again in binary mode"),
    (b"\xc2\x89FWB", "it was re-encoded as text: copy it again in binary mode"),
    (b"\xef\xbf\xbdFWB", "it was re-encoded as text: copy it again in binary mode"),
    (b"\tFWB", "the high bit of each byte was stripped: copy it again in binary mode"),
    (b"PK\x03\x04", "it is a zip archive, perhaps a checkpoint of torch.save: compress it first"),
    (b"\x80\x02", "it is a pickle, perhaps an old checkpoint of torch.save: compress it first"),
    (b"version https://git-lfs", "it is a Git LFS pointer: run `git lfs pull`"),
    (b"<!DOCTYPE", "it is a web page, such as an error or login page: download it again"),
    (b"<!doctype", "it is a web page, such as an error or login page: download it again"),
    (b"<html", "it is a web page, such as an error or login page: download it again"),
)


@dataclass(frozen=True)
class Frame:
    """The format version, the verified JSON of the index, and the offset where the index begins."""

    version: tuple[int, int]
    header: bytes
    payload_end: int


def pack_index(header: bytes, payload: int, minor: int) -> bytes:
    """Return index and footer of a file whose bodies take ``payload`` bytes.

    ``minor`` is the lowest minor version that has all features the file uses.
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    stored = deflate.compress(header) + deflate.flush()
    total = len(PREFIX) + payload + len(stored) + FOOTER
    fields = FIELDS.pack(minor, len(stored), len(header), total)
    return stored + fields + struct.pack("<I", _checksum(stored, fields))


def read_frame(fetch: Fetch, size: int, max_decoded_bytes: int) -> Frame:
    """Return the verified frame of a file of ``size`` bytes, trusting nothing in it.

    Fetches only the prefix, the footer and the index.
    """
    head = fetch(0, min(size, len(PREFIX)))
    if not head.startswith(MAGIC):
        raise CorruptFileError(f"this is not a fewbits file: {_diagnose(fetch(0, min(size, 32)))}")
    _check_prefix(head)
    if size < len(PREFIX) + FOOTER:
        raise CorruptFileError(
            f"the file is truncated: {size} bytes, shorter than a prefix and a footer"
        )
    footer = fetch(size - FOOTER, size)
    minor, stored, raw, total = FIELDS.unpack_from(footer)
    if total != size:
        raise CorruptFileError(
            f"the file is truncated, damaged, or followed by other bytes: its last {FOOTER} bytes "
            f"are not the footer of a file of {size} bytes. Download or copy it again."
        )
    start = size - FOOTER - stored
    if raw > MAX_HEADER or raw * 32 > max_decoded_bytes or start < len(PREFIX):
        raise CorruptFileError(
            f"the lengths of the index ({stored} stored, {raw} inflated) exceed the file "
            f"or the limit of {max_decoded_bytes} decoded bytes"
        )
    body = fetch(start, size - FOOTER)
    if _checksum(body, footer[: FIELDS.size]) != int.from_bytes(footer[FIELDS.size :], "little"):
        raise CorruptFileError(
            f"the index (bytes {start} to {size}) fails its checksum. Download or copy it again."
        )
    return Frame((VERSION[0], minor), _inflate(body, raw, start), start)


def _checksum(stored: bytes, fields: bytes) -> int:
    return zlib.crc32(fields, zlib.crc32(stored, zlib.crc32(PREFIX)))


def _check_prefix(head: bytes) -> None:
    if len(head) < len(PREFIX):
        raise CorruptFileError(
            f"the file ends within its prefix: {len(head)} of {len(PREFIX)} bytes"
        )
    major = int.from_bytes(head[len(MAGIC) :], "little")
    if major != VERSION[0]:
        raise CorruptFileError(
            f"the file has format version {major}; this version of fewbits reads {VERSION[0]}. "
            "Install the fewbits version that wrote it, or a newer one."
        )


def _inflate(stored: bytes, length: int, start: int) -> bytes:
    inflate = zlib.decompressobj(-15, DICTIONARY)
    try:
        header = inflate.decompress(stored, length + 1)
    except zlib.error as error:
        raise CorruptFileError(f"the index (byte {start}) does not inflate: {error}") from error
    if len(header) != length or not inflate.eof or inflate.unused_data:
        raise CorruptFileError(f"the index (byte {start}) does not inflate to {length} bytes")
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


def undelta(fetch: Fetch, size: int) -> Fetch:
    """Return how to fetch the bytes of a delta as those of an ordinary file.

    Raises:
        CorruptFileError: it is none.
    """
    head = fetch(0, min(size, len(DELTA_MAGIC)))
    if head != DELTA_MAGIC:
        why = "it is a whole fewbits file: it needs no base" if head == MAGIC else _diagnose(head)
        raise CorruptFileError(f"this is not a delta: {why}")

    def plain(start: int, end: int) -> bytes:
        return MAGIC[start:end] + fetch(max(start, len(MAGIC)), max(end, len(MAGIC)))

    return plain


def wrapper(size: int) -> bytes:
    """Return what comes before a file of ``size`` bytes; its length does not depend on ``size``."""
    header = {
        "__metadata__": {"format": "pt"},
        _TENSOR: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
    }
    return _START.pack(_WRAPPER) + json.dumps(header).encode().ljust(_WRAPPER)


def located(fetch: Fetch, size: int) -> tuple[Fetch, int]:
    """Return how to fetch the bytes of the fewbits file in a file of ``size`` bytes, and its size.

    That is the file itself, unless it is a .safetensors file whose only tensor is named "fewbits",
    has the dtype U8 and covers the rest of the file.
    """
    start = _start(fetch, size)
    if not start:
        return fetch, size
    return lambda first, end: fetch(start + first, start + end), size - start


def _start(fetch: Fetch, size: int) -> int:
    """Return where the embedded file begins; 0 if there is none."""
    if size <= _START.size + 1:
        return 0
    head = fetch(0, _START.size + 1)
    (length,) = _START.unpack_from(head)
    start = _START.size + length
    if head[-1:] != b"{" or length > _LONGEST_WRAPPER or start > size:
        return 0
    with suppress(ValueError, RecursionError):
        header = json.loads(fetch(_START.size, start))
        rest = size - start
        whole = {"dtype": "U8", "shape": [rest], "data_offsets": [0, rest]}
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        return start if header == {_TENSOR: whole} else 0
    return 0
