"""The first bytes: what is not ours, what was mangled on its way, what is from another version."""

import struct
import zlib

import pytest

from fewbits.coded import ActivationGrid, Contents
from fewbits.container import decode, encode
from fewbits.container.prefix import MAGIC, join_prefix, split_prefix
from fewbits.errors import CorruptFileError

FILE = encode(Contents({}, metadata={"a": 1}))


def with_field(layout, offset, value, data=FILE):
    """Return ``data`` with one field of the prefix set and the checksum made right again."""
    out = bytearray(data)
    struct.pack_into(layout, out, offset, value)
    length = struct.unpack_from("<I", out, 12)[0]
    struct.pack_into("<I", out, 28, zlib.crc32(bytes(out[:28]) + bytes(out[32 : 32 + length])))
    return bytes(out)


def test_the_bytes_are_those_of_the_specification():
    assert FILE[:8] == b"\x89FWB\r\n\x1a\n" == MAGIC
    major, minor, stored, raw, total, check = struct.unpack_from("<HHIIQI", FILE, 8)
    assert (major, minor, total) == (1, 0, len(FILE))
    assert raw == len(b'{"m":{"a":1}}')
    assert check == zlib.crc32(FILE[:28] + FILE[32 : 32 + stored])


@pytest.mark.parametrize(
    ("name", "zero", "minor"),
    [("a", 0, 0), ("a@1", 0, 0), ("a", 3, 3), ("a:out", 0, 3), ("a:out@2", 0, 3)],
)
def test_the_minor_version_is_the_lowest_that_knows_every_grid(name, zero, minor):
    file = encode(Contents({}, activations={name: ActivationGrid(4, 1.0, False, zero)}))
    assert struct.unpack_from("<HH", file, 8) == (1, minor)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (FILE.replace(b"\r\n", b"\n"), "line ends"),
        (FILE.replace(b"\n", b"\r\n"), "line ends"),
        (FILE.replace(b"\r", b" "), "changed on its way"),
        (FILE.decode("latin-1").encode("utf-8"), "re-encoded as text"),
        (FILE.decode("utf-8", "replace").encode("utf-8"), "re-encoded as text"),
        (bytes(byte & 127 for byte in FILE), "eighth bits"),
        (b"PK\x03\x04" + bytes(60), "torch.save"),
        (b"<!DOCTYPE html>\n<html></html>" + bytes(60), "a web page"),
        (b"<html><body>Not found</body></html>" + bytes(60), "a web page"),
        (b"\x80\x02}q" + bytes(60), "pickle"),
        (struct.pack("<Q", 20) + b'{"__metadata__":{}}', "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"hello, world", "starts with b'hello, w'"),
        (MAGIC, "ends inside its prefix"),
        (FILE[:31], "ends inside its prefix"),
        (FILE[:-1], "truncated"),
        (FILE + b"x", "followed by other bytes"),
        (with_field("<H", 8, 2), r"version 2\.0.*reads 1\.x"),
        (with_field("<H", 8, 0), r"version 0\.0"),
        (with_field("<Q", 20, 2**63), "truncated"),
        (with_field("<I", 16, 2**26 + 1), "beyond the file or the limit"),
        (with_field("<I", 16, 2**32 - 1), "beyond the file or the limit"),
        (with_field("<I", 16, 12), "does not inflate to 12"),
        (with_field("<I", 16, 14), "does not inflate to 14"),
        (with_field("<I", 12, len(FILE) - 32 - 1), "does not inflate"),
        (FILE[:28] + b"\0\0\0\0" + FILE[32:], "fails its checksum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_wrong_beginning_is_told_apart(data, message):
    with pytest.raises(CorruptFileError, match=message):
        decode(data)


def test_a_header_length_beyond_the_file_is_refused():
    data = bytearray(FILE)
    struct.pack_into("<I", data, 12, 2**32 - 1)
    with pytest.raises(CorruptFileError, match="beyond the file"):
        decode(bytes(data))


def test_a_header_that_inflates_to_more_than_it_says_is_cut_off():
    data = join_prefix(b'{"m":{"a":"' + b"x" * 2**20 + b'"}}', 0)
    assert len(data) < 2000
    with pytest.raises(CorruptFileError, match="does not inflate to 1000"):
        decode(with_field("<I", 16, 1000, data))


def test_bytes_between_header_and_streams_are_refused():
    stored = FILE[32:] + b"junk"
    data = bytearray(FILE[:32] + stored)
    struct.pack_into("<I", data, 12, len(stored))
    data = with_field("<Q", 20, len(data), data)
    with pytest.raises(CorruptFileError, match="does not inflate"):
        decode(data)


def test_a_header_that_is_not_deflated_is_refused():
    data = bytearray(FILE[:32] + b"\xff" * 20)
    struct.pack_into("<I", data, 12, 20)
    data = with_field("<Q", 20, len(data), data)
    with pytest.raises(CorruptFileError, match="does not inflate"):
        decode(data)


def test_minor_versions_add_and_major_versions_end():
    later = bytearray(join_prefix(b'{"m":{"a":1},"new":[1]}', 0))
    with pytest.raises(CorruptFileError, match="unknown key 'new'"):
        decode(bytes(later))
    struct.pack_into("<H", later, 10, 7)
    later = with_field("<H", 10, 7, later)
    assert split_prefix(later, 2**26).version == (1, 7)
    assert decode(later).metadata == {"a": 1}
