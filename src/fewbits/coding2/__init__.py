"""Symbols to bytes and back: integers in, the fewest bytes out. NumPy and integers only.

The coder that is to follow :mod:`fewbits.coding`, measured beside it by
``benchmarks/coding2_table.py``. No file is written with it yet, and nothing else imports it.
"""

from . import mix, planes, rans, raw
from .choose import (
    EFFORTS,
    Stream,
    codec_of,
    decode_run,
    decode_symbols,
    encode_run,
    encode_symbols,
    runs,
)
from .codec import CODECS, Bound, Codec, Layout, Symbols, register
from .kernels import on_compile

__all__ = [
    "CODECS",
    "EFFORTS",
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
    "mix",
    "on_compile",
    "planes",
    "rans",
    "raw",
    "register",
    "runs",
]
