"""Symbols to bytes and back: integers in, the fewest bytes out. NumPy and integers only."""

from . import mix, planes, rans, raw
from .choose import (
    EFFORTS,
    TOGETHER,
    Stream,
    codec_of,
    decode_run,
    decode_symbols,
    encode_run,
    encode_symbols,
    is_effort,
    measure,
)
from .codec import CODECS, Bound, Codec, Layout, Symbols, register
from .entropy import entropy

__all__ = [
    "CODECS",
    "EFFORTS",
    "TOGETHER",
    "Bound",
    "Codec",
    "Layout",
    "Stream",
    "Symbols",
    "codec_of",
    "decode_run",
    "decode_symbols",
    "encode_run",
    "encode_symbols",
    "entropy",
    "is_effort",
    "measure",
    "mix",
    "planes",
    "rans",
    "raw",
    "register",
]
