"""Index matrices that share a stream: read alone or together, itemised, and refused if forged."""

import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from fewbits.coded import Contents, GridTensor, RawTensor
from fewbits.container import decode, encode, measure, read_lazily, read_tensor, write
from fewbits.container.dictionary import DICTIONARY
from fewbits.container.header import dump_header
from fewbits.container.lazy import LazyTensors
from fewbits.container.opened import open_source
from fewbits.container.prefix import join_prefix
from fewbits.container.reader import open_file
from fewbits.container.streams import CHECKSUM
from fewbits.errors import CorruptFileError

JOINED = 8
RNG = np.random.default_rng(5)


def layer(outputs, inputs):
    values = RNG.normal(0, 2, (outputs, inputs, 9))
    for tap in range(1, 9):
        values[..., tap] = 0.7 * values[..., tap - 1] + 0.5 * values[..., tap]
    index = np.rint(values).clip(-7, 7).astype(np.int32).reshape(outputs, -1)
    return GridTensor((outputs, inputs, 3, 3), "float32", index, np.ones(1, np.float32))


def flat(rows, columns):
    index = RNG.integers(-40, 41, (rows, columns), dtype=np.int32)
    return GridTensor((rows, columns), "float32", index, np.ones(1, np.float32))


CONTENTS = Contents(
    {
        "a": layer(8, 8),
        "between": flat(8, 8),
        "b": layer(12, 8),
        "bias": RawTensor((12,), "float32", np.arange(48, dtype=np.uint8)),
        "c": layer(12, 12),
        "after": flat(7, 7),
    },
    {"tied": "b"},
)
DATA = encode(CONTENTS)


def group():
    return next(span for span in open_file(DATA).spans if span.codec == JOINED)


def same_index(tensor, name):
    np.testing.assert_array_equal(tensor.index, CONTENTS.tensors[name].index)
    assert tensor.index.dtype == np.int32


def test_matrices_share_a_stream_at_the_place_of_the_last():
    opened = open_file(DATA)
    assert opened.version == (1, 2)
    assert [part.name for part in group().stream.parts] == ["a", "b", "c"]
    assert group().stream.shapes == ((8, 72), (12, 72), (12, 108))
    names = [span.stream.parts[0].name for span in opened.spans[:3]]
    assert names == ["between", "a", "after"]
    assert [length for length in opened.header.lengths[:3] if not length] == [0, 0]
    assert len(DATA) < len(encode(CONTENTS, "fast"))


def test_a_file_with_a_joined_stream_reads_as_without():
    for data in (DATA, encode(CONTENTS, "fast")):
        got = decode(data)
        assert list(got.tensors) == list(CONTENTS.tensors)
        for name in ("a", "b", "c", "between", "after"):
            same_index(got.tensors[name], name)
    assert encode(decode(DATA)) == DATA
    assert open_file(encode(CONTENTS, "fast")).version == (1, 0)


def test_one_of_them_is_had_with_its_stream_alone(tmp_path):
    path = tmp_path / "x.fewbits"
    write(DATA, path)
    same_index(read_tensor(path, "tied"), "b")
    asked = []

    def fetch(start, end):
        asked.append((start, end))
        return DATA[start:end]

    opened = open_source(fetch, len(DATA))
    asked.clear()
    lazy = LazyTensors(opened)
    for name in ("b", "a", "c", "b"):
        same_index(lazy[name], name)
    span = group()
    assert asked.count((span.start, span.end)) == 1  # decoded once, and kept
    with read_lazily(path) as (tensors, _):
        tensors.check()
        for name in ("c", "a"):
            same_index(tensors[name], name)


def test_the_shares_of_the_stream_sum_to_it():
    report = measure(DATA)
    assert report.file_bytes == len(DATA)
    rows = {row.name: row for row in report.rows}
    span = group()
    size = span.end - span.start + CHECKSUM
    assert sum(rows[name].payload for name in "abc") == size
    assert rows["a"].payload == size * 576 // (576 + 864 + 1296)
    assert {rows[name].codecs for name in "abc"} == {"joined"}


def resealed(change):
    """Return the file with ``change`` made to codecs and lengths, checksums right."""
    opened = open_file(DATA)
    codecs, lengths = list(opened.header.codecs), list(opened.header.lengths)
    change(codecs, lengths)
    text = dump_header(replace(opened.header, codecs=tuple(codecs), lengths=tuple(lengths)))
    payload = DATA[opened.payload_start :]
    return join_prefix(text, len(payload), 2) + payload


def test_the_header_of_the_tests_is_sound():
    assert resealed(lambda codecs, lengths: None) == DATA
    stored = struct.unpack_from("<I", DATA, 12)[0]
    text = zlib.decompressobj(-15, DICTIONARY).decompress(DATA[32 : 32 + stored])
    assert json.loads(text)["c"][:5] == list(open_file(DATA).header.codecs[:5])


@pytest.mark.parametrize(
    ("place", "codec", "length", "error"),
    [
        (4, JOINED, 0, "joined to none|end at byte"),  # 'after' waits for what never comes
        (5, JOINED, 0, "joined to none|end at byte|only index"),
        (0, 0, None, "end at byte|damaged|cannot be decoded"),  # 'a' claims a stream of its own
        (0, JOINED, 5, "end at byte"),
        (1, JOINED, None, "damaged|cannot be decoded"),  # 'between' ends the group instead
        (3, 1, None, "joined to none"),  # the stream of the group is no group's
    ],
)
def test_joins_that_do_not_fit_are_refused(place, codec, length, error):
    def change(codecs, lengths):
        codecs[place] = codec
        if length is not None:
            lengths[place] = length

    with pytest.raises(CorruptFileError, match=error):
        decode(resealed(change))


def test_only_index_matrices_are_joined():
    def change(codecs, lengths):
        codecs[3], lengths[3] = JOINED, 0
        codecs[4] = 1
        codecs[5] = JOINED

    opened = open_file(DATA)
    lengths = opened.header.lengths
    cut = group()
    forged = resealed(change)
    head = len(forged) - (len(DATA) - opened.payload_start)
    at = cut.start - opened.payload_start + head
    short = forged[:at] + forged[at + lengths[3] + CHECKSUM :]
    text = struct.unpack_from("<I", forged, 12)[0]
    out = bytearray(short)
    struct.pack_into("<Q", out, 20, len(short))
    struct.pack_into("<I", out, 28, zlib.crc32(out[32 : 32 + text], zlib.crc32(out[:28])))
    with pytest.raises(CorruptFileError, match="only index matrices"):
        decode(bytes(out))


def test_a_bomb_of_joined_matrices_is_refused_before_it_is_decoded():
    """Each entry of the header stands for many symbols, which no byte of the stream tells."""
    rows = 60_000
    tensors = {
        str(k): GridTensor((rows, 9), "float32", np.zeros((rows, 9), np.int32), np.ones(1, "f4"))
        for k in range(40)
    }
    opened = open_file(encode(Contents(tensors), "fast"))
    codecs = [JOINED] * 40 + list(opened.header.codecs[40:])
    lengths = [0] * 39 + [9] + list(opened.header.lengths[40:])
    body = bytes([0, 77, 8 + 16 * 3, 9, 127, 1, 1, 1, 1])
    rest = opened.spans[40]
    data = encode(Contents(tensors), "fast")
    payload = body + struct.pack("<I", zlib.crc32(body)) + data[rest.start :]
    text = dump_header(replace(opened.header, codecs=tuple(codecs), lengths=tuple(lengths)))
    forged = join_prefix(text, len(payload), 2) + payload
    with pytest.raises(CorruptFileError, match="more than the limit"):
        decode(forged, max_decoded_bytes=1 << 20)
    with pytest.raises(CorruptFileError, match="joined, at most"):
        decode(forged, max_decoded_bytes=1 << 30)
