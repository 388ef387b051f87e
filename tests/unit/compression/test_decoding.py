"""Tensors of several chunks, read piece by piece, have the values they have as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewbits.coded import Codebook, CodebookTensor, Contents, GridTensor, RawTensor
from fewbits.compression.decoding import values_of
from fewbits.container import keep_open, read_lazily, streams, write_contents
from fewbits.engine.layers.pack import to_torch

RNG = np.random.default_rng(0)


def index(rows, columns, low=-3, high=4):
    return RNG.integers(low, high, (rows, columns), dtype=np.int32)


def contents():
    per_row = RNG.random(50, np.float32) + 1
    values = RNG.normal(size=30_000).astype("<f4")
    halves = (values.view("<u4") >> 16).astype("<u2")  # bfloat16
    return Contents(
        {
            "grid": GridTensor((50, 40), "bfloat16", index(50, 40), per_row),
            "taps": GridTensor((50, 10, 2, 2), "float32", index(50, 40), per_row[:1]),
            "book": CodebookTensor(
                (50, 40),
                "float16",
                index(50, 40, 0, 3),
                Codebook(np.array([-1, 0, 2], np.float32)),
                per_row,
            ),
            "raw": RawTensor((300, 100), "float32", values.view(np.uint8)),
            "narrow": RawTensor((200, 100), "float32", halves[:20_000].view(np.uint8), "bfloat16"),
            "one": GridTensor((5, 4), "float32", index(5, 4), per_row[:1]),
        }
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("chunks") / "net.fewbits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", 300)
        with path.open("wb") as file:
            write_contents(contents(), file, "fast", 1)
        yield path


@pytest.mark.parametrize(
    ("threads", "kept"),
    [
        *((3, True), (1, False)),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(1, True), (3, False)]),
    ],
)
def test_pieces_are_the_whole(path, threads, kept):
    opening = keep_open(path) if kept else read_lazily(path, threads=threads)
    with opening as (tensors, _):
        assert tensors.is_concurrent == kept
        for name in tensors:
            whole = to_torch(tensors[name])
            pieces = values_of(tensors, name, threads)
            assert torch.equal(pieces, whole), name
            assert (pieces.dtype, pieces.shape) == (whole.dtype, whole.shape)
        places = {name: len(tensors.places(name)) for name in tensors}
        assert places == {"grid": 8, "taps": 8, "book": 8, "raw": 400, "narrow": 134, "one": 1}
