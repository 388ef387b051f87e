"""What others write takes its place when it is complete, or leaves nothing."""

from __future__ import annotations

import os

import pytest

from fewbits.files.draft import draft


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_and_a_folder_are_put_in_place(tmp_path):
    with draft(tmp_path / "a.bin") as place:
        assert place.name == "a.bin"
        place.write_bytes(b"new")
        assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    with draft(str(tmp_path / "folder")) as place:
        place.mkdir()
        (place / "x").write_bytes(b"x")
    assert (tmp_path / "folder" / "x").read_bytes() == b"x"
    assert names(tmp_path) == ["a.bin", "folder"]
    (tmp_path / "folder" / "kept").write_bytes(b"kept")
    with draft(tmp_path / "folder") as place:
        place.mkdir()
        (place / "x").write_bytes(b"newer")
    assert (tmp_path / "folder" / "x").read_bytes() == b"newer"
    assert names(tmp_path / "folder") == ["kept", "x"]
    assert names(tmp_path) == ["a.bin", "folder"]


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    with draft(tmp_path / "link") as place:
        place.write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    (tmp_path / "dangling").symlink_to("later")
    with draft(tmp_path / "dangling") as place:
        place.write_bytes(b"new")
    assert (tmp_path / "later").read_bytes() == b"new"
    assert (tmp_path / "dangling").is_symlink()


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail():
        with draft(path) as place:
            place.write_bytes(b"new")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX permissions")
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as told, draft(tmp_path / "a.bin"):
        pass
    assert told.value.filename == str(tmp_path / "a.bin")
