"""Symbols to bytes and back: integers in, the fewest bytes out. numpy and integers only."""

from . import adaptive, binary, constant, contexts, planes, raw, static, tuples
from .choose import EFFORTS, decode_stream, encode_stream, name_of
from .codec import CODECS, Codec, Symbols
from .rate import Rate, entropy, estimate

__all__ = [
    "CODECS",
    "EFFORTS",
    "Codec",
    "Rate",
    "Symbols",
    "adaptive",
    "binary",
    "constant",
    "contexts",
    "decode_stream",
    "encode_stream",
    "entropy",
    "estimate",
    "name_of",
    "planes",
    "raw",
    "static",
    "tuples",
]
