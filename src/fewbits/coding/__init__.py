"""Symbols to bytes and back: integers in, the fewest bytes out. NumPy and integers only."""

from .choose import (
    EFFORTS,
    TOGETHER,
    Stream,
    codec_of,
    decode_run,
    decode_symbols,
    encode_run,
    encode_symbols,
    entropy,
    is_effort,
    measure,
)
from .codec import CODECS, Bound, Codec, Layout, Symbols
from .mix.mix import Mix
from .rans.planes import Planes
from .rans.rans import Rans
from .raw import Constant, Raw

__all__ = [
    "CODECS",
    "EFFORTS",
    "TOGETHER",
    "Bound",
    "Codec",
    "Constant",
    "Layout",
    "Mix",
    "Planes",
    "Rans",
    "Raw",
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
]
