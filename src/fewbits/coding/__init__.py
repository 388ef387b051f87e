"""Symbols to bytes and back: integers in, the fewest bytes out. numpy and integers only."""

from . import constant, planes, raw, static
from .choose import decode_stream, encode_stream, name_of
from .codec import CODECS, Codec, Symbols

__all__ = [
    "CODECS",
    "Codec",
    "Symbols",
    "constant",
    "decode_stream",
    "encode_stream",
    "name_of",
    "planes",
    "raw",
    "static",
]
