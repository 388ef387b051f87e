"""Checkpoints on disk: what comes back is what was written, or an error of one kind."""

from __future__ import annotations

import hashlib
import random
import zipfile

import pytest
import torch

from fewbits.errors import ConfigError, SourceError
from fewbits.training.loop.checkpoint import SCHEMA, RunFolder

STATE = {
    "key": "k",
    "best": None,
    "reference": 0.5,
    "model": {"weight": torch.linspace(-1, 1, 60).reshape(6, 10), "steps": torch.tensor(7)},
    "history": [{"loss": 0.25, "epoch": 1}],
}


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path)
    made.save(STATE, None)
    return made


def sealed(data):
    return data + f"\n{SCHEMA} sha256 {hashlib.sha256(data).hexdigest()}\n".encode()


def test_what_is_written_is_read_back(folder):
    state = folder.load("k")
    assert state["history"] == STATE["history"]
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    assert torch.load(folder.last, weights_only=True)["key"] == "k"
    with pytest.raises(ConfigError, match="another network"):
        folder.load("other")


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_changed_byte_goes_unnoticed(folder, count):
    sound, draw = folder.last.read_bytes(), random.Random(0)
    for _ in range(count):
        place, flip = draw.randrange(len(sound)), draw.randrange(1, 256)
        folder.last.write_bytes(sound[:place] + bytes([sound[place] ^ flip]) + sound[place + 1 :])
        with pytest.raises(SourceError, match="cannot be read"):
            folder.load("k")


def test_nor_does_a_missing_or_an_additional_piece(folder):
    sound = folder.last.read_bytes()
    pieces = [sound[:k] for k in range(0, len(sound), 97)]
    pieces += [sound + b"\0", sound[1:], b"", sound * 2, b"x" * 200]
    for piece in pieces:
        folder.last.write_bytes(piece)
        with pytest.raises(SourceError, match=r"last\.pt' cannot be read: .*train again"):
            folder.load("k")


def test_what_others_wrote_is_refused_even_where_torch_reads_it(folder):
    torch.save(STATE, folder.last)
    with pytest.raises(SourceError, match="no checkpoint of this version"):
        folder.load("k")
    with zipfile.ZipFile(folder.last, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(SourceError, match="no checkpoint of this version"):
        folder.load("k")


@pytest.mark.parametrize("forged", ["no zip", "pickle", "list", "lacking", "bomb"])
def test_a_forged_seal_brings_no_other_kind_of_error(folder, forged):
    if forged == "bomb":
        with zipfile.ZipFile(folder.last, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(1 << 20))
    elif forged == "lacking":
        torch.save({"key": "k"}, folder.last)
    elif forged == "list":
        torch.save([1, 2], folder.last)
    else:
        folder.last.write_bytes(b"\x80\x02cos\nsystem\n." if forged == "pickle" else b"PK\x03\x04")
    folder.last.write_bytes(sealed(folder.last.read_bytes()))
    with pytest.raises(SourceError, match="cannot be read"):
        folder.load("k")
