"""Symbols to bytes and back: integers in, the fewest bytes out. numpy and integers only."""

from . import (
    adaptive,
    binary,
    blocks,
    constant,
    contexts,
    joined,
    planes,
    raw,
    split,
    static,
    tuples,
)
from .choose import EFFORTS, decode_stream, encode_stream, name_of, stream_work
from .codec import CODECS, Codec, Symbols
from .grouping import join_small
from .joined import decode_group, group_work
from .pricing import Alternatives, alternatives
from .rate import Rate, entropy, estimate

__all__ = [
    "CODECS",
    "EFFORTS",
    "Alternatives",
    "Codec",
    "Rate",
    "Symbols",
    "adaptive",
    "alternatives",
    "binary",
    "blocks",
    "constant",
    "contexts",
    "decode_group",
    "decode_stream",
    "encode_stream",
    "entropy",
    "estimate",
    "group_work",
    "join_small",
    "joined",
    "name_of",
    "planes",
    "raw",
    "split",
    "static",
    "stream_work",
    "tuples",
]
