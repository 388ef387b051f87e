"""The journal of a compression: what is done survives the process, and nothing else is taken."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from fewbits.coded import GridTensor, RawTensor
from fewbits.compression.storage.journal import Finished, Journal
from fewbits.errors import ConfigError


def grid(value=0, rows=3, columns=40):
    index = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns) % 7 + value
    return GridTensor((rows, columns), "float32", index, np.ones(1, np.float32), np.ones(1, "f4"))


def bias(value=0.5):
    return RawTensor((2,), "float32", np.full(2, value, np.float32).view(np.uint8), "float32")


def filled(folder, parts=3, key="k"):
    journal = Journal(folder, key)
    for place in range(parts):
        name = f"{9 - place}.weight"
        part = Finished(
            f"module {9 - place}",
            (name,),
            (f"{place}.bias",),
            {name: {"error": 0.1 * place, "worst": math.inf, "least": -math.inf}},
            {name: f"note {place}"},
            (name,) if place else (),
        )
        journal.write(part, {name: grid(place)}, {f"{place}.bias": bias(place)})
    return journal


def test_what_was_written_is_there_in_its_order(tmp_path):
    written = filled(tmp_path / "deep" / "folder")
    again = Journal(tmp_path / "deep" / "folder", "k")
    assert again.finished == written.finished
    assert [part.part for part in again.finished] == ["module 9", "module 8", "module 7"]
    info = again.finished[1].info["8.weight"]
    assert info == {"error": 0.1, "worst": math.inf, "least": -math.inf}
    for journal in (written, again):
        for place in range(3):
            assert np.array_equal(journal.read(f"{9 - place}.weight").index, grid(place).index)
            assert np.array_equal(journal.read(f"{place}.bias").data, bias(place).data)


def test_numbers_that_are_none_come_back():
    part = Finished("weight a", ("a",), info={"a": {"error": math.nan}})
    values = json.loads(json.dumps(part.to_dict(), allow_nan=False))
    assert math.isnan(Finished.of_dict(values).info["a"]["error"])


def test_writing_goes_on_after_the_last_part(tmp_path):
    filled(tmp_path)
    journal = Journal(tmp_path, "k")
    journal.write(Finished("module new", ("9.weight",)), {"9.weight": grid(5)}, {})
    assert len(list(tmp_path.glob("*.fewbits"))) == 4
    assert np.array_equal(Journal(tmp_path, "k").read("9.weight").index, grid(5).index)


def test_weights_that_are_almost_all_zero(tmp_path):
    """They take so little that files from elsewhere would be refused as bombs."""
    zeros = replace(grid(rows=4200, columns=4200), index=np.zeros((4200, 4200), np.int32))
    Journal(tmp_path, "k").write(Finished("module a", ("a",), info={"a": {}}), {"a": zeros}, {})
    assert not Journal(tmp_path, "k").read("a").index.any()


def test_a_result_that_is_saved_in_the_folder_is_not_a_part(tmp_path):
    filled(tmp_path)
    shutil.copy(tmp_path / "000001.fewbits", tmp_path / "net.fewbits")
    assert len(Journal(tmp_path, "k").finished) == 3


def test_a_part_without_weights(tmp_path):
    Journal(tmp_path, "k").write(Finished("module a", ()), {}, {})
    assert Journal(tmp_path, "k").finished == [Finished("module a", ())]


def test_another_compression(tmp_path):
    filled(tmp_path)
    with pytest.raises(ConfigError, match="another network, or with another recipe"):
        Journal(tmp_path, "other")
    assert len(Journal(tmp_path, "k").finished) == 3


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="has other files"):
        Journal(tmp_path, "k")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    left = tmp_path / f".fewbits-{'0' * 16}.tmp"
    left.write_bytes(b"half")
    assert Journal(tmp_path, "k").finished == []
    assert not left.exists()


def _flipped(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0, 20, -3])
def test_a_damaged_part_is_named(place, tmp_path):
    filled(tmp_path)
    _flipped(tmp_path / "000001.fewbits", place)
    with pytest.raises(ConfigError, match=r"000001.fewbits is damaged.*Remove it and all"):
        Journal(tmp_path, "k").read("8.weight")


def test_a_file_of_something_else(tmp_path):
    filled(tmp_path)
    (tmp_path / "000002.fewbits").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"000002.fewbits is damaged"):
        Journal(tmp_path, "k")


def test_a_part_that_is_missing(tmp_path):
    filled(tmp_path)
    (tmp_path / "000001.fewbits").unlink()
    with pytest.raises(ConfigError, match=r"has '000002.fewbits', but not '000001.fewbits'"):
        Journal(tmp_path, "k")
    (tmp_path / "000002.fewbits").unlink()
    assert len(Journal(tmp_path, "k").finished) == 1


def test_a_folder_that_was_removed_is_missed_when_it_is_read(tmp_path):
    journal = filled(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"was removed.*until the network is saved"):
        journal.read("8.weight")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 2, "key": "k"}', "not of this version"),
        ("[]", "not of this version"),
        ('{"version": 1', "start again"),
        ('{"version": 1}', "belongs to the compression of another"),
    ],
)
def test_another_version_or_a_damaged_description(text, message, tmp_path):
    filled(tmp_path)
    (tmp_path / "journal.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Journal(tmp_path, "k")
