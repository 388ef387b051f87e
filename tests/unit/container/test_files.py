"""Files on disk: written wholly or not at all, read by name, looked into without decoding."""

import json
import os
import stat
import tracemalloc

import numpy as np
import pytest

from fewbits.coded import ActivationGrid, Contents, GridTensor, RawTensor
from fewbits.coding import CODECS
from fewbits.container import encode, inspect, keep_open, measure, read, write
from fewbits.errors import CorruptFileError
from forging import index_of

INDEX = np.rint(np.random.default_rng(0).normal(0, 2, (20, 30))).astype(np.int32)
CONTENTS = Contents(
    {"w": GridTensor((20, 30), "float32", INDEX, np.ones(1, np.float32))},
    {"v": "w"},
    {"layer": ActivationGrid(8, 0.5, signed=True)},
    {"recipe": {"bits": 4}},
)


def test_write_then_read(tmp_path):
    path = tmp_path / "net.fewbits"
    write(encode(CONTENTS), path)
    write(encode(CONTENTS), str(path))
    np.testing.assert_array_equal(read(path).tensors["w"].index, INDEX)
    assert [item.name for item in tmp_path.iterdir()] == ["net.fewbits"]


@pytest.mark.skipif(os.name == "nt", reason="modes are those of POSIX")
def test_a_file_has_the_mode_that_the_system_gives(tmp_path):
    write(b"x", tmp_path / "ours")
    (tmp_path / "plain").write_bytes(b"x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")}
    assert len(modes) == 1


def test_a_link_is_followed(tmp_path):
    write(b"old", tmp_path / "target")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write(b"new", tmp_path / "link")
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "net.fewbits"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(
        *((os, "fsync", fail) if step == "fsync" else (type(path), "replace", fail))
    )
    with pytest.raises(OSError, match="disk full"):
        write(b"new", path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error_of_the_system(tmp_path):
    path = tmp_path / "no" / "net.fewbits"
    with pytest.raises(FileNotFoundError, match=r"folder '.*no' does not exist") as told:
        write(b"x", path)
    assert told.value.filename == str(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "no.fewbits")


def test_what_cannot_be_written_is_named_and_not_what_was_written_before(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match="folder") as told:
        write(b"x", path)
    assert told.value.filename == str(path)
    assert ".tmp" not in str(told.value)
    assert list(tmp_path.iterdir()) == [path]


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "broken.fewbits"
    path.write_bytes(encode(CONTENTS)[:-3])
    for use in (read, inspect):
        with pytest.raises(CorruptFileError, match=r"broken\.fewbits: the file is truncated"):
            use(path)


def test_the_limit_is_passed_on(tmp_path):
    write(encode(CONTENTS), tmp_path / "net")
    with pytest.raises(CorruptFileError, match="limit"):
        read(tmp_path / "net", max_decoded_bytes=100)


def test_inspect_tells_everything_and_decodes_no_weight(tmp_path, monkeypatch):
    path = tmp_path / "net.fewbits"
    data = encode(CONTENTS)
    write(data, path)

    def fail(*_):
        raise AssertionError("a weight was decoded")

    for name in ("rans", "mix"):
        monkeypatch.setattr(type(CODECS[name]), "decode", fail)
    info = inspect(path)
    assert info.path == str(path)
    assert info.version == (2, 0)
    assert info.report == measure(data)
    assert info.aliases == {"v": "w"}
    assert info.activations == CONTENTS.activations
    assert info.metadata == CONTENTS.metadata
    values = json.loads(json.dumps(info.to_dict()))
    assert values["size"]["file_bytes"] == len(data)
    assert values["activations"] == {"layer": {"bits": 8, "clip": 0.5, "signed": True, "zero": 0}}


def test_inspect_holds_little_of_the_file(tmp_path):
    rng = np.random.default_rng(0)
    values = {str(n): RawTensor((1 << 20,), "uint8", random_bytes(rng)) for n in range(8)}
    path = tmp_path / "net.fewbits"
    write(encode(Contents(values), "fast"), path)
    inspect(path)
    tracemalloc.start()
    try:
        inspect(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 8 << 20
    assert peak < 4 << 20


def random_bytes(rng):
    return rng.integers(0, 256, 1 << 20, dtype=np.uint8)


@pytest.mark.parametrize("change", ["longer", "shorter", "touched"])
def test_a_file_that_is_kept_open_must_not_change(tmp_path, change):
    path = tmp_path / "net.fewbits"
    write(encode(Contents({"a": RawTensor((4,), "uint8", np.arange(4, dtype=np.uint8))})), path)
    with keep_open(path) as (tensors, _):
        if change == "longer":
            path.write_bytes(path.read_bytes() + b"x")
        elif change == "shorter":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            os.utime(path, ns=(1, 1))
        with pytest.raises(CorruptFileError, match=r"net.fewbits: the file was changed after"):
            tensors["a"]


def test_inspect_checks_every_checksum(tmp_path):
    data = bytearray(encode(CONTENTS))
    data[index_of(data)[0] - 1] ^= 1
    (tmp_path / "net").write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"side stream.*checksum"):
        inspect(tmp_path / "net")
