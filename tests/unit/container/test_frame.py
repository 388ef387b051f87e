"""Both ends of a file: what is not ours, what was mangled on its way, other versions."""

import struct
import zlib

import pytest

from fewbits.coded import ActivationGrid, Contents
from fewbits.container import decode, encode
from fewbits.container.frame import FIELDS, FOOTER, MAGIC, PREFIX, pack_index, read_frame
from fewbits.errors import CorruptFileError
from forging import framed

FILE = encode(Contents({}, metadata={"a": 1}))
MINOR, STORED, RAW, TOTAL = (("<H", -22), ("<I", -20), ("<I", -16), ("<Q", -12))  # of the end


def with_field(field, value, data=FILE):
    """Return ``data`` with one field of the footer set and the checksum made right again."""
    layout, place = field
    out = bytearray(data)
    struct.pack_into(layout, out, len(out) + place, value)
    start = len(out) - FOOTER - FIELDS.unpack_from(out, len(out) - FOOTER)[1]
    check = zlib.crc32(bytes(out[:10]) + bytes(out[max(start, 10) : -4]))
    struct.pack_into("<I", out, len(out) - 4, check)
    return bytes(out)


def test_the_bytes_are_those_of_the_specification():
    assert FILE[:8] == b"\x89FWB\r\n\x1a\n" == MAGIC
    assert FILE[8:10] == b"\2\0"
    minor, stored, raw, total, check = struct.unpack("<HIIQI", FILE[-22:])
    assert (minor, total) == (0, len(FILE))
    assert stored == len(FILE) - 10 - 22
    assert raw == len(b'{"m":{"a":1}}')
    assert check == zlib.crc32(FILE[:10] + FILE[10:-4])
    assert with_field(MINOR, 0) == FILE
    assert framed(b'{"m":{"a":1}}') == FILE


def test_the_checksum_leaves_bodies_out():
    payload = b"whatever"
    data = PREFIX + payload + pack_index(b"{}", len(payload), 0)
    frame = read_frame(lambda start, end: data[start:end], len(data), 1000)
    assert (frame.header, frame.payload_end, frame.version) == (b"{}", 18, (2, 0))
    other = PREFIX + b"WHATEVER" + data[18:]
    assert read_frame(lambda start, end: other[start:end], len(other), 1000) == frame


@pytest.mark.parametrize(("name", "zero"), [("a", 0), ("a@1", 0), ("a", 3), ("a:out@2", 7)])
def test_everything_that_is_written_is_of_version_2_0(name, zero):
    file = encode(Contents({}, activations={name: ActivationGrid(4, 1.0, False, zero)}))
    assert FIELDS.unpack_from(file, len(file) - FOOTER)[0] == 0
    assert decode(file).activations[name].zero == zero


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (FILE.replace(b"\r\n", b"\n"), "line endings"),
        (FILE.replace(b"\n", b"\r\n"), "line endings"),
        (FILE.replace(b"\r", b" "), "changed in transit"),
        (FILE.decode("latin-1").encode("utf-8"), "re-encoded as text"),
        (FILE.decode("utf-8", "replace").encode("utf-8"), "re-encoded as text"),
        (bytes(byte & 127 for byte in FILE), "high bit"),
        (b"PK\x03\x04" + bytes(60), "torch.save"),
        (b"<!DOCTYPE html>\n<html></html>" + bytes(60), "a web page"),
        (b"<html><body>Not found</body></html>" + bytes(60), "a web page"),
        (b"\x80\x02}q" + bytes(60), "pickle"),
        (struct.pack("<Q", 20) + b'{"__metadata__":{}}', "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"hello, world", "starts with b'hello, w'"),
        (MAGIC, "ends within its prefix"),
        (FILE[:9], "ends within its prefix"),
        (FILE[:10], "truncated: 10 bytes"),
        (FILE[:31], "truncated: 31 bytes"),
        (FILE[:-1], "truncated"),
        (FILE[:40], "truncated"),
        (FILE + b"x", "followed by other bytes"),
        (FILE + bytes(4096), "followed by other bytes"),
        (
            FILE[:8] + b"\1\0" + FILE[10:],
            r"version 1; this .* reads 2\. Install the fewbits version that",
        ),
        (FILE[:8] + b"\3\0" + FILE[10:], r"version 3; .*, or a newer one"),
        (with_field(TOTAL, 2**63), "not the footer of a file of"),
        (with_field(RAW, 2**26 + 1), "exceed the file or the limit"),
        (with_field(RAW, 2**32 - 1), "exceed the file or the limit"),
        (with_field(RAW, 12), "does not inflate to 12"),
        (with_field(RAW, 14), "does not inflate to 14"),
        (with_field(STORED, len(FILE) - 32 - 1), "does not inflate"),
        (with_field(STORED, len(FILE) - 32 + 1), "exceed the file"),
        (with_field(STORED, 2**32 - 1), "exceed the file"),
        (FILE[:-4] + b"\0\0\0\0", "fails its checksum"),
        (FILE[:-22] + b"\1" + FILE[-21:], "fails its checksum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_everything_that_is_no_file_is_told_apart(data, message):
    with pytest.raises(CorruptFileError, match=message):
        decode(data)


def test_a_header_that_inflates_to_more_than_it_says_is_cut_off():
    data = framed(b'{"m":{"a":"' + b"x" * 2**20 + b'"}}')
    assert len(data) < 2000
    with pytest.raises(CorruptFileError, match="does not inflate to 1000"):
        decode(with_field(RAW, 1000, data))


@pytest.mark.parametrize("where", ["before", "after"])
def test_bytes_between_bodies_and_index_and_after_it_are_refused(where):
    index = FILE[10:-22]
    index = b"junk" + index if where == "before" else index + b"junk"
    fields = FIELDS.pack(0, len(index), 13, len(FILE) + 4)
    data = PREFIX + index + fields + struct.pack("<I", zlib.crc32(PREFIX + index + fields))
    with pytest.raises(CorruptFileError, match="does not inflate"):
        decode(data)
    data = PREFIX + b"junk" + pack_index(b"{}", 4, 0)
    with pytest.raises(CorruptFileError, match=r"end at byte 10, but the index begins at 14"):
        decode(data)


def test_a_header_that_is_not_deflated_is_refused():
    fields = FIELDS.pack(0, 20, 13, 10 + 20 + FOOTER)
    text = b"\xff" * 20
    check = struct.pack("<I", zlib.crc32(PREFIX + text + fields))
    with pytest.raises(CorruptFileError, match="does not inflate"):
        decode(PREFIX + text + fields + check)


def test_minor_versions_add_and_major_versions_end():
    text = b'{"m":{"a":1},"new":[1]}'
    with pytest.raises(CorruptFileError, match="unknown key 'new'"):
        decode(framed(text))
    later = framed(text, minor=7)
    assert read_frame(lambda start, end: later[start:end], len(later), 2**26).version == (2, 7)
    assert decode(later).metadata == {"a": 1}
