"""A damaged file is refused by one kind of error that says where: never other weights."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from fewbits.coded import (
    ActivationGrid,
    AffineTensor,
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
from paths import path

RNG = np.random.default_rng(5)


def bell(*shape):
    return np.rint(RNG.normal(0, 3, shape)).astype(np.int32)


def f32(*values):
    return np.array(values, np.float32)


def smooth(*shape):
    values = np.cumsum(np.cumsum(RNG.normal(0, 1, (*shape, 9)), axis=-1), axis=-2)
    return np.rint(values).clip(-9, 9).astype(np.int32).reshape(shape[0], -1)


def small_file():
    book = Codebook(f32(-1, 0, 1, 2))
    left = GridTensor((6, 3), "float32", bell(6, 3), f32(0.5))
    tensors = {
        "conv.weight": GridTensor((8, 4, 3, 3), "float32", bell(8, 36), f32(0.1), f32(0.5)),
        "conv2.weight": GridTensor((8, 4, 3, 3), "float32", smooth(8, 4), f32(0.1)),
        "conv3.weight": GridTensor((8, 4, 3, 3), "float32", smooth(8, 4), f32(0.1)),
        "path.weight": GridTensor((24, 6), "float32", path(bell(24, 6) // 2), f32(0.1)),
        "bn.weight": RawTensor((90,), "float32", RNG.normal(1, 0.1, 90).astype("<f4").view("u1")),
        "bn.count": RawTensor((), "int64", np.array([9], "<i8").view(np.uint8)),
        "affine.weight": AffineTensor((6, 5), "float32", bell(6, 5), f32(0.25), f32(-1.5)),
        "fc.weight": CodebookTensor((10, 8), "float32", bell(10, 8) & 3, book, f32(*range(1, 11))),
        "low.weight": TransformTensor(
            (6, 5), "float32", GridTensor((3, 5), "float32", bell(3, 5), f32(1)), left
        ),
    }
    grids = {"conv": ActivationGrid(4, 2.5, signed=True)}
    return Contents(tensors, {"tied": "fc.weight"}, grids, {"recipe": {"bits": 4}})


CONTENTS = small_file()
FILE, FAST = encode(CONTENTS, "smallest"), encode(CONTENTS, "fast")
LIMIT = 2**22
MODEL = 1 << 23  # bytes of what `mix` learns


def refuse_or_same(data):
    """Return whether ``data`` was refused; anything but refusal or the same contents fails."""
    try:
        got = decode(data, max_decoded_bytes=LIMIT)
    except CorruptFileError:
        return True
    assert encode(got, "smallest") == FILE
    return False


def test_the_files_have_bodies_of_every_codec():
    # But of two: a constant has no body, and `floats` needs thousands of values; fuzzing has it.
    numbers = {span.codec for data in (FILE, FAST) for span in open_file(data).spans}
    others = ("constant", "floats")
    assert numbers == {codec.number for name, codec in CODECS.items() if name not in others}


@pytest.mark.parametrize("part", range(4))
def test_every_truncation_is_refused(part):
    for length in range(part, len(FILE), 4):
        with pytest.raises(CorruptFileError):
            decode(FILE[:length])


@pytest.mark.parametrize("change", [1, 0x80, 0xFF])
def test_every_byte_that_is_another_is_refused(change):
    for position in range(len(FILE)):
        data = bytearray(FILE)
        data[position] ^= change << position % 8 if change == 1 else change
        with pytest.raises(CorruptFileError):
            decode(bytes(data))


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
    assert peak < 4 * LIMIT + MODEL


def resealed(data, rng):
    """Corrupt the streams and make the checksums right again: what an attacker would send."""
    out = bytearray(data)
    for span in open_file(data).spans:
        if rng.random() < 0.3:
            at = int(rng.integers(span.start, span.end))
            out[at] = int(rng.integers(256))
        out[span.end : span.end + 4] = struct.pack("<I", zlib.crc32(out[span.start : span.end]))
    return bytes(out)


@pytest.mark.parametrize("data", [FILE, FAST], ids=["smallest", "fast"])
@pytest.mark.parametrize(
    ("seed", "count"), [(0, 120), pytest.param(1, 600, marks=pytest.mark.slow)]
)
def test_streams_forged_with_right_checksums_never_escape(data, seed, count):
    rng = np.random.default_rng(seed)
    outcomes = set()
    for _ in range(count):
        try:
            got = decode(resealed(data, rng), max_decoded_bytes=LIMIT)
        except CorruptFileError:
            outcomes.add("refused")
            continue
        outcomes.add("decoded")
        for tensor in got.tensors.values():
            if not isinstance(tensor, RawTensor):
                with np.errstate(over="ignore", invalid="ignore"):
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
        first = span.chunks[0].stream
        names = {part.name for part in first.parts if part.role in ("index", "raw")}
        assert any(repr(name) in text for name in names) or "side stream" in text or "low." in text


def test_swapped_streams_are_refused():
    first, second = open_file(FILE).spans[:2]
    data = FILE[: first.start] + FILE[second.start : second.end + 4]
    data += FILE[first.start : first.end + 4] + FILE[second.end + 4 :]
    with pytest.raises(CorruptFileError, match="checksum"):
        decode(data)


@pytest.mark.parametrize("error", [MemoryError, RecursionError, AssertionError, IndexError])
def test_whatever_a_codec_raises_becomes_one_error(monkeypatch, error):
    def fail(*_):
        raise error("inside")

    monkeypatch.setattr(type(CODECS["raw"]), "decode", fail)
    with pytest.raises(CorruptFileError, match=f"'.*weight'.*{error.__name__}"):
        decode(FILE)


def test_an_interrupt_passes(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(CODECS["raw"]), "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode(FILE)
