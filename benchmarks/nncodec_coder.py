"""Bytes that nncodec's arithmetic coder takes for index matrices; run by its own Python.

    PYTHON_WITH_NNCODEC benchmarks/nncodec_coder.py MATRICES.npz

Prints JSON: for each matrix the fewest bytes of its settings (context initialisation searched or
not, rows of zeros skipped or not), each stream decoded again and compared. Only its compiled coder
is loaded, without headers of its own units, so the comparison is of coders and leans its way.
``coding.py`` calls this when the variable FEWBITS_NNCODEC_PYTHON names that Python.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

UNARY = 11  # its default


def _coder() -> Any:
    """Load the extension by path: the package around it imports torchvision and more."""
    pattern = "lib/python*/site-packages/nncodec/extensions/deepCABAC*.so"
    found = sorted(Path(sys.prefix).glob(pattern))
    if not found:
        raise SystemExit(f"no nncodec in {sys.prefix}: install nncodec 2.1.3 there")
    spec = importlib.util.spec_from_file_location("deepCABAC", found[0])
    if spec is None or spec.loader is None:
        raise SystemExit(f"cannot load {found[0]}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _bytes(coder: Any, index: Any, search: int, skip: int) -> int:
    """Return the bytes of one stream, after decoding it."""
    off = (coder.HdspMode.AlwaysOff, np.zeros(1, np.int8), 0, 0)
    zero_rows = (~index.any(axis=1)).astype(np.int32) * skip
    encoder = coder.Encoder()
    encoder.initCtxModels(UNARY, search)
    encoder.encodeLayer(index, 0, 0, skip, 0, skip, zero_rows, *off)
    stream = np.asarray(encoder.finish())
    decoder = coder.Decoder()
    decoder.setStream(stream)
    decoder.initCtxModels(UNARY)
    back = np.zeros_like(index)
    decoder.decodeLayer(back, 0, 0, skip, 0, *off)
    if not np.array_equal(back, index):
        raise SystemExit("its decoder gave other integers")
    return int(stream.nbytes)


def main() -> None:
    """Measure every matrix of the archive."""
    coder = _coder()
    found = {}
    with np.load(sys.argv[1]) as archive:
        for name in archive.files:
            index = np.ascontiguousarray(archive[name], np.int32)
            skips = (0, 1) if (~index.any(axis=1)).any() else (0,)
            found[name] = min(_bytes(coder, index, s, k) for s in (0, 1) for k in skips)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
