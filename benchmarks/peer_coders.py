"""Bytes and seconds of other coders for index matrices; run by a Python that has them.

    PYTHON_WITH_PEERS benchmarks/peer_coders.py MATRICES.npz [CODER ...]

Prints JSON: for each matrix and coder the bytes; for general compressors also those of all matrices
at once; in all, the CPU seconds of encoding and decoding, matrix by matrix.
nncodec: the fewest bytes of its settings (context initialisation searched or not, rows of zeros
skipped or not); only its compiled coder is loaded, without headers of its own units, so the
comparison is of coders and leans its way. zpaq -m5: a context mixer of the general kind. It and
the general compressors get the indices as bytes. Each stream is decoded again and compared.
``coding.py`` calls this when the variable FEWBITS_PEERS_PYTHON names that Python.
"""

from __future__ import annotations

import bz2
import importlib.util
import json
import lzma
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

UNARY = 11  # nncodec's default


def _nncodec() -> Any:
    """Load the extension by path: the package around it imports torchvision and more."""
    pattern = "lib/python*/site-packages/nncodec/extensions/deepCABAC*.so"
    found = sorted(Path(sys.prefix).glob(pattern))
    if not found:
        return None
    spec = importlib.util.spec_from_file_location("deepCABAC", found[0])
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NNCodec:
    """nncodec's arithmetic coder, with one of its settings."""

    def __init__(self, coder: Any, search: int, skip: int) -> None:
        self.coder, self.search, self.skip = coder, search, skip
        self.off = (coder.HdspMode.AlwaysOff, np.zeros(1, np.int8), 0, 0)

    def encode(self, index: Any) -> Any:
        """Return the stream of a matrix."""
        zero_rows = (~index.any(axis=1)).astype(np.int32) * self.skip
        encoder = self.coder.Encoder()
        encoder.initCtxModels(UNARY, self.search)
        encoder.encodeLayer(index, 0, 0, self.skip, 0, self.skip, zero_rows, *self.off)
        return np.asarray(encoder.finish())

    def decode(self, stream: Any, like: Any) -> Any:
        """Return the matrix of a stream."""
        decoder, back = self.coder.Decoder(), np.zeros_like(like)
        decoder.setStream(stream)
        decoder.initCtxModels(UNARY)
        decoder.decodeLayer(back, 0, 0, self.skip, 0, *self.off)
        return back


class General:
    """A compressor of bytes."""

    def __init__(self, compress: Callable[[bytes], bytes], expand: Callable[[bytes], bytes]):
        self.compress, self.expand = compress, expand

    def encode(self, index: Any) -> bytes:
        """Return the compressed bytes of a matrix."""
        return self.compress(index.astype(_dtype(index)).tobytes())

    def decode(self, stream: bytes, like: Any) -> Any:
        """Return the matrix again."""
        return np.frombuffer(self.expand(stream), _dtype(like)).reshape(like.shape)


def _dtype(index: Any) -> type[np.int8 | np.int32]:
    return np.int8 if abs(index).max() < 128 else np.int32


def _general() -> dict[str, General]:
    form: dict[str, Any] = {"format": lzma.FORMAT_XZ, "check": lzma.CHECK_NONE}
    found = {
        "xz -9e": General(
            lambda data: lzma.compress(data, **form, preset=9 | lzma.PRESET_EXTREME),
            lzma.decompress,
        ),
        "bz2 -9": General(bz2.compress, bz2.decompress),
    }
    with suppress(ImportError):
        import brotli  # noqa: PLC0415

        found["brotli 11"] = General(
            lambda data: brotli.compress(data, quality=11, lgwin=24), brotli.decompress
        )
    with suppress(ImportError):
        import zstandard  # noqa: PLC0415

        found["zstd -22"] = General(
            zstandard.ZstdCompressor(level=22, write_content_size=True).compress,
            zstandard.ZstdDecompressor().decompress,
        )
    with suppress(ImportError):
        import zpaq  # noqa: PLC0415

        found["zpaq -m5"] = General(
            lambda data: zpaq.compress(data, level=5, threads=1), zpaq.decompress
        )
    return found


def _measured(coders: dict[str, Any], matrices: list[Any]) -> dict[str, Any]:
    """Return bytes of each matrix and seconds in all, the best of several settings of a coder."""
    bytes_of: dict[str, list[int]] = {}
    seconds: dict[str, list[float]] = {}
    for name, settings in coders.items():
        best = [1 << 62] * len(matrices)
        for setting in settings:
            spent = [0.0, 0.0]
            for at, index in enumerate(matrices):
                start = time.process_time()
                stream = setting.encode(index)
                middle = time.process_time()
                back = setting.decode(stream, index)
                spent[0] += middle - start
                spent[1] += time.process_time() - middle
                if not np.array_equal(back, index):
                    raise RuntimeError(f"{name} gives other symbols back")
                best[at] = min(best[at], len(stream))
            seconds.setdefault(name, [round(value, 3) for value in spent])  # of its first setting
        bytes_of[name] = best
    joined = np.concatenate([index.reshape(-1) for index in matrices])
    together = {
        name: len(settings[0].encode(joined))
        for name, settings in coders.items()
        if isinstance(settings[0], General)
    }
    return {"bytes": bytes_of, "joined": together, "seconds": seconds}


def main() -> None:
    with np.load(sys.argv[1]) as arrays:
        matrices = [np.ascontiguousarray(arrays[name], np.int32) for name in arrays.files]
    coders: dict[str, list[Any]] = {name: [coder] for name, coder in _general().items()}
    nncodec = _nncodec()
    if nncodec is not None:
        settings = [(search, skip) for search in (0, 1) for skip in (0, 1)]
        coders["nncodec"] = [NNCodec(nncodec, *setting) for setting in settings]
    wanted = sys.argv[2:] or list(coders)
    coders = {name: settings for name, settings in coders.items() if name in wanted}
    print(json.dumps(_measured(coders, matrices)))


if __name__ == "__main__":
    main()
