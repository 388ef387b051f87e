"""Code integer symbols to bytes and back, in as few bytes as possible. NumPy and integers only."""

from .choose import (
    EFFORTS,
    MAX_SHARED_SYMBOLS,
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
from .mix.trellis import Trellis
from .rans.floats import Floats
from .rans.planes import Planes
from .rans.rans import Rans
from .rans.trellis import RansTrellis
from .raw import Constant, Raw

__all__ = [
    "CODECS",
    "EFFORTS",
    "MAX_SHARED_SYMBOLS",
    "Bound",
    "Codec",
    "Constant",
    "Floats",
    "Layout",
    "Mix",
    "Planes",
    "Rans",
    "RansTrellis",
    "Raw",
    "Stream",
    "Symbols",
    "Trellis",
    "codec_of",
    "decode_run",
    "decode_symbols",
    "encode_run",
    "encode_symbols",
    "entropy",
    "is_effort",
    "measure",
]
