"""A damaged file is refused by one kind of error that says where: never other weights."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from fewbits.coded import (
    ActivationGrid,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    RawTensor,
    TransformTensor,
)
from fewbits.coding import CODECS
from fewbits.container import decode, encode
from fewbits.container.reader import open_file
from fewbits.errors import CorruptFileError

RNG = np.random.default_rng(5)


def bell(*shape):
    return np.rint(RNG.normal(0, 3, shape)).astype(np.int32)


def f32(*values):
    return np.array(values, np.float32)


def small_file():
    book = Codebook(f32(-1, 0, 1, 2))
    left = GridTensor((6, 3), "float32", bell(6, 3), f32(0.5))
    tensors = {
        "conv.weight": GridTensor((8, 4, 3, 3), "float32", bell(8, 36), f32(0.1), f32(0.5)),
        "bn.weight": RawTensor((8,), "float32", RNG.normal(1, 0.1, 8).astype("<f4").view(np.uint8)),
        "bn.count": RawTensor((), "int64", np.array([9], "<i8").view(np.uint8)),
        "fc.weight": CodebookTensor((10, 8), "float32", bell(10, 8) & 3, book, f32(*range(1, 11))),
        "low.weight": TransformTensor(
            (6, 5), "float32", GridTensor((3, 5), "float32", bell(3, 5), f32(1)), left
        ),
    }
    grids = {"conv": ActivationGrid(4, 2.5, signed=True)}
    return encode(Contents(tensors, {"tied": "fc.weight"}, grids, {"recipe": {"bits": 4}}))


FILE = small_file()
LIMIT = 2**22
TABLES = 1 << 24  # the laws of `adaptive`, for its widest alphabet


def refuse_or_same(data):
    """Return whether ``data`` was refused; anything but refusal or the same contents fails."""
    try:
        got = decode(data, max_decoded_bytes=LIMIT)
    except CorruptFileError:
        return True
    assert encode(got) == FILE
    return False


@pytest.mark.parametrize("part", range(4))
def test_every_truncation_is_refused(part):
    for length in range(part, len(FILE), 4):
        with pytest.raises(CorruptFileError):
            decode(FILE[:length])


def test_every_flip_of_one_bit_is_refused():
    for position in range(len(FILE)):
        data = bytearray(FILE)
        data[position] ^= 1 << position % 8
        refused = refuse_or_same(bytes(data))
        assert refused or position in (10, 11)  # another minor version reads the same


def mutate(rng):
    data = bytearray(FILE)
    for _ in range(int(rng.integers(1, 4))):
        at, size = int(rng.integers(len(data))), int(rng.integers(1, 9))
        kind = rng.integers(4)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            data[at:at] = rng.bytes(size)
        else:
            del data[at : at + size]
    return data


SEEDS = [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))]


@pytest.mark.parametrize("seed", SEEDS)
def test_500_random_corruptions(seed):
    rng = np.random.default_rng(seed)
    tracemalloc.start()
    refused = sum(refuse_or_same(bytes(mutate(rng))) for _ in range(500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused >= 490
    assert peak < 4 * LIMIT + TABLES


def resealed(data, rng):
    """Corrupt the streams and make the checksums right again: what an attacker would send."""
    opened = open_file(FILE)
    out = bytearray(data)
    for span in opened.spans:
        if span.end > span.start and rng.random() < 0.5:
            at = int(rng.integers(span.start, span.end))
            out[at] = int(rng.integers(256))
        out[span.end : span.end + 4] = struct.pack("<I", zlib.crc32(out[span.start : span.end]))
    return bytes(out)


@pytest.mark.parametrize("seed", range(4))
def test_streams_forged_with_right_checksums_never_escape(seed):
    rng = np.random.default_rng(seed)
    outcomes = set()
    for _ in range(300):
        try:
            got = decode(resealed(FILE, rng), max_decoded_bytes=LIMIT)
        except CorruptFileError:
            outcomes.add("refused")
            continue
        outcomes.add("decoded")
        for tensor in got.tensors.values():
            if not isinstance(tensor, RawTensor):
                assert tensor.dequantize().shape == tensor.shape
    assert outcomes == {"refused", "decoded"}


def test_damage_is_located_by_stream_and_byte():
    opened = open_file(FILE)
    for span in opened.spans:
        data = bytearray(FILE)
        data[span.end - 1] ^= 1
        with pytest.raises(CorruptFileError) as caught:
            decode(bytes(data))
        text = str(caught.value)
        assert f"bytes {span.start} to {span.end}" in text
        assert "checksum" in text
        names = {part.name for part in span.stream.parts if part.role in ("index", "raw")}
        assert any(repr(name) in text for name in names) or "side stream" in text or "low." in text


def test_swapped_streams_are_refused():
    first, second = open_file(FILE).spans[:2]
    data = FILE[: first.start] + FILE[second.start : second.end + 4]
    data += FILE[first.start : first.end + 4] + FILE[second.end + 4 :]
    with pytest.raises(CorruptFileError, match="checksum"):
        decode(data)


class PanicException(BaseException):
    """A stand-in for the panic of a compiled library, which is no Exception."""


@pytest.mark.parametrize("error", [PanicException, MemoryError, RecursionError, AssertionError])
def test_whatever_a_codec_raises_becomes_one_error(monkeypatch, error):
    def fail(*_):
        raise error("inside")

    monkeypatch.setattr(type(CODECS["static"]), "decode", fail)
    with pytest.raises(CorruptFileError, match=f"conv.weight.*{error.__name__}"):
        decode(FILE)


def test_an_interrupt_passes(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(CODECS["static"]), "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode(FILE)
