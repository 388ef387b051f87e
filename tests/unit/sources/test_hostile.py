"""Data and weights that others made: headers before bodies, bounded unpacking, one error."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import tracemalloc
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from cpu_time import within
from fewbits.errors import SourceError
from fewbits.sources import load_data
from fewbits.sources.base.bounded import allowed_bytes
from fewbits.sources.checkpoints import state_dicts
from fewbits.sources.checkpoints.checkpoint import read_state_dict
from fewbits.sources.checkpoints.state_dicts import _unwrap
from fewbits.sources.data.idx import read_idx


@pytest.fixture
def frugal():
    """No test of this file may hold more than 100 MB at a time, nor take 10 s of the processor."""
    tracemalloc.start()
    with within(10):
        yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def bomb(start, count):
    """Return ``start`` and ``count`` zero bytes, gzipped."""
    made = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [made.compress(start)]
    pieces += [made.compress(bytes(1 << 20)) for _ in range(count >> 20)]
    return b"".join([*pieces, made.flush()])


def idx_header(*shape):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def gzipped(content):
    return gzip.compress(content, mtime=0)


HUGE = 2**32 - 1
IDX = {
    "bomb of another kind": (lambda: bomb(b"no idx", 256 << 20), "not an idx file"),
    "bomb": (
        lambda: bomb(idx_header(2**20, 16, 16), 256 << 20),
        r"states shape \(1048576, 16, 16\)",
    ),
    "bomb behind a body": (
        lambda: bomb(idx_header(3, 2, 2), 256 << 20),
        "has more bytes where its",
    ),
    "huge axes": (lambda: gzipped(idx_header(HUGE, HUGE, HUGE)), "states shape"),
    "no rows, huge axes": (lambda: gzipped(idx_header(0, HUGE, HUGE)), "states shape"),
    "labels": (lambda: bomb(idx_header(16 << 20), 16 << 20), r"states shape \(16777216,\)"),
    "255 axes": (lambda: gzipped(b"\0\0\x08\xff" + bytes(1020)), "states 255 axes"),
    "half a header": (lambda: gzipped(idx_header(3, 2)[:-2]), "ends within its header"),
    "no end": (lambda: gzipped(idx_header(3) + bytes(3))[:-6], "cannot be read"),
    "wrong checksum": (lambda: gzipped(idx_header(3) + bytes(3))[:-8] + bytes(8), "cannot be read"),
    "no gzip": (lambda: b"no gzip", "cannot be read"),
}


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("name", IDX)
def test_idx_is_refused_by_its_header(tmp_path, name):
    make, told = IDX[name]
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(make())
    with pytest.raises(SourceError, match=told):
        read_idx(path)


def npy(shape, dtype="<f4", body=b"", version=b"\x01\x00"):
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}}}".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + body


def npz(path, compression=zipfile.ZIP_STORED, **entries):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize(
    "x",
    [
        npy((10**12,)),
        npy((2**40, 2**40)),
        npy((3, 2), body=bytes(23)),
        npy((3, 2), body=bytes(25)),
        npy((3,), "|O", bytes(24)),
        npy((3,), "no dtype"),
        npy((3,), version=b"\x03\x00"),
        b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000,
        b"\x93NUMPY\x01\x00\x10\x00" + b"{'descr': [], 1:",
        b"no array",
        b"",
    ],
)
def test_npz_is_refused_by_its_headers(tmp_path, x):
    npz(tmp_path / "d.npz", x=x, y=npy((3,), "<i8", bytes(24)))
    with pytest.raises(SourceError, match=r"d\.npz: cannot be read as \.npz"):
        load_data(str(tmp_path / "d.npz"))


@pytest.mark.usefixtures("frugal")
def test_an_npz_that_unpacks_to_too_much(tmp_path):
    zeros = npy((90 << 20,), "|u1") + bytes(90 << 20)
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", memoryview(zeros)[: 1 << 20])
        with archive.open("other.npy", "w") as entry:
            for _ in range(160):
                entry.write(bytes(1 << 20))
    del zeros
    tracemalloc.reset_peak()
    with pytest.raises(SourceError, match="bytes would unpack to 168,"):
        load_data(str(tmp_path / "d.npz"))


def test_random_damage_to_an_npz_is_an_error_or_the_same_data(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(6) % 2)
    sound, draw = (tmp_path / "d.npz").read_bytes(), random.Random(0)
    want = load_data(str(tmp_path / "d.npz")).split("train").inputs
    same = 0
    for _ in range(300):
        place = draw.randrange(len(sound))
        changed = bytes([sound[place] ^ draw.randrange(1, 256)])
        (tmp_path / "d.npz").write_bytes(sound[:place] + changed + sound[place + 1 :])
        try:
            found = load_data(str(tmp_path / "d.npz"))
        except SourceError:
            continue
        assert torch.equal(found.split("train").inputs, want)
        same += 1
    assert same < 200


def picture(kind, size):
    """Return the bytes of a blank picture."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", size).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda: picture("PNG", (9000, 9000)), r"states \(9000, 9000\) pixels"),
        (lambda: picture("PNG", (60_000, 1)), "resizing its shorter side to 4096"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be decoded"),
        (lambda: picture("PNG", (9, 9))[:-30], "cannot be decoded"),
        (lambda: b"II*\0" + bytes(200), "cannot be decoded"),
        (lambda: b"P5\n99999999 99999999\n255\n", "cannot be decoded"),
    ],
)
def test_pictures_are_refused_by_their_headers(tmp_path, content, told):
    pytest.importorskip("PIL")
    made = content()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(3):
            (tmp_path / name / f"{k}.png").write_bytes(made)
    data = load_data(f"folder:{tmp_path}?size=4096" if "resizing" in told else f"folder:{tmp_path}")
    with pytest.raises(SourceError, match=told):
        next(iter(data.split("train").batches(2, None, None)))


@pytest.mark.skipif(os.name == "nt", reason="special files are POSIX's")
def test_a_special_file_among_pictures_is_not_waited_for(tmp_path):
    pytest.importorskip("PIL")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "0.png")
        (tmp_path / name / "1.png").symlink_to("/dev/zero")
    data = load_data(f"folder:{tmp_path}")
    with pytest.raises(SourceError, match="not a regular file"):
        next(iter(data.split("train").batches(2, None, None)))


STATE = {"a.weight": torch.linspace(-1, 1, 30), "b": torch.arange(5)}


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_changed_byte_of_weights_goes_unnoticed(tmp_path, count):
    path, draw = tmp_path / "net.pt", random.Random(1)
    torch.save(STATE, path)
    sound = path.read_bytes()
    for _ in range(count):
        place = draw.randrange(len(sound))
        changed = bytes([sound[place] ^ draw.randrange(1, 256)])
        path.write_bytes(sound[:place] + changed + sound[place + 1 :])
        try:
            found = read_state_dict(path)
        except SourceError:
            continue
        assert found.keys() == STATE.keys()
        assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_nor_any_in_the_directory_at_the_end(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(STATE, path)
    sound = path.read_bytes()
    for place in range(len(sound) - 110, len(sound)):
        for changed in {0, 1, 255, sound[place] ^ 128} - {sound[place]}:
            path.write_bytes(sound[:place] + bytes([changed]) + sound[place + 1 :])
            with suppress(SourceError):
                found = read_state_dict(path)
                assert all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.usefixtures("frugal")
def test_a_pickle_that_is_shared_or_contains_itself_ends():
    doubled = {"none": 1}
    for _ in range(60):
        doubled = {"a": doubled, "b": doubled}
    itself = {"w": {"t": torch.ones(2)}}
    itself["model"] = itself
    for value in ({"x": doubled}, {"state_dict": doubled}, itself):
        file = io.BytesIO()
        torch.save(value, file)
        with pytest.raises(SourceError, match="are not tensors"):
            _unwrap(torch.load(io.BytesIO(file.getvalue()), weights_only=True), Path("net.pt"))


def test_an_index_of_shards_is_plain_json(tmp_path):
    for text in ("[" * 10_000, '{"weight_map": {"a": "b", "a": "c"}}', '{"x": 1e400}', "\xff"):
        (tmp_path / "m.safetensors.index.json").write_text(text, encoding="latin-1")
        with pytest.raises(SourceError, match="cannot be read as JSON: it must be JSON"):
            read_state_dict(tmp_path / "m.safetensors.index.json")


def test_weights_in_the_old_form_are_read_and_damage_is_named(tmp_path):
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(tmp_path / "old.pt")["b"], STATE["b"])
    torch.save(STATE, tmp_path / "net.pt")
    data = bytearray((tmp_path / "net.pt").read_bytes())
    data[data.index(STATE["a.weight"].numpy().tobytes()) + 5] ^= 1
    (tmp_path / "net.pt").write_bytes(data)
    with pytest.raises(SourceError, match=r"is damaged: the checksum of '.*data/0' is wrong"):
        read_state_dict(tmp_path / "net.pt")


def test_the_bound_is_told_and_grows_with_the_length():
    assert allowed_bytes(0) == 64 << 20
    assert allowed_bytes(1000) - allowed_bytes(0) == 64_000


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (np.float32(3), np.zeros(3, np.int64), "single value"),
        (np.zeros((2, 3)), np.zeros(2, "datetime64[s]"), "not integer class numbers"),
        (np.zeros((2, 3)), np.array(["a", "b"]), "not integer class numbers"),
        (np.zeros((2, 3)), np.zeros(2, complex), "not integer class numbers"),
        (np.zeros((2, 3)), np.array([0, 1e300]), "out of range"),
        (np.zeros((2, 3)), np.array([0, 2**64 - 1], np.uint64), "out of range"),
    ],
)
def test_arrays_that_are_no_samples_or_labels_are_told(tmp_path, x, y, told):
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with pytest.raises(SourceError, match=told):
        load_data(f"npz:{tmp_path / 'data.npz'}")


def test_numbers_that_grow_when_they_are_used_count_as_what_they_become(tmp_path):
    many = np.zeros(60_000_000, np.int8)
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros((60_000_000, 0)), y=many)
    with pytest.raises(SourceError, match="need more than"):
        load_data(f"npz:{tmp_path / 'data.npz'}")


def test_other_ways_of_packing_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", npy((3, 2)))
    with pytest.raises(SourceError, match="not compressed with deflate"):
        load_data(f"npz:{tmp_path / 'data.npz'}")


def test_shapes_that_torch_cannot_take_are_a_source_error(tmp_path):
    header = b'{"w":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'
    (tmp_path / "net.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(SourceError, match="safetensors"):
        read_state_dict(tmp_path / "net.safetensors")


def test_a_shard_of_many_spellings_is_read_once(tmp_path, monkeypatch):
    torch.save({f"w{k}": torch.zeros(1) for k in range(9)}, tmp_path / "part.bin")
    names = {f"w{k}": f"{'./' * k}part.bin" for k in range(9)}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    reads = []
    real = state_dicts._single
    monkeypatch.setattr(state_dicts, "_single", lambda path: reads.append(path) or real(path))
    assert len(read_state_dict(index)) == 9
    assert len(reads) == 1


def test_a_jpeg_of_endless_scans_is_refused(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "x.jpg"
    image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path, progressive=True)
    sound = path.read_bytes()
    begin, end = sound.rindex(b"\xff\xda"), sound.rindex(b"\xff\xd9")
    path.write_bytes(sound[:begin] + sound[begin:end] * 500 + sound[end:])
    for number in range(3):
        (tmp_path / "a" / f"{number}.jpg").write_bytes(path.read_bytes())
    data = load_data(f"folder:{tmp_path}?size=8")
    with pytest.raises(SourceError, match="scans"):
        next(iter(data.batches("train", 2, 2)))
